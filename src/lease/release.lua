-- Releases the lease, if this acquisition still has it, and passes it to the first of the waiting
-- list.
-- KEYS and the claim as for acquire. ARGV[9]: the mode (see `record`). ARGV[10]: the outcome to
-- record. ARGV[11]: the milliseconds that the in-doubt block had left. ARGV[12]: amount and code of
-- a signed F to keep with the sent marker, or empty.
-- Returns {1 if this acquisition still had the lease, or else 0; the outcome recorded before}.
local claim = claim_at(4, 6)
local mine, found = record(claim, ARGV[9], ARGV[10], ARGV[11], ARGV[12])
if mine then pass_on() else leave(claim.token) end
return {mine and 1 or 0, found}
