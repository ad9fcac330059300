-- Gives the lease back, by its token; whoever waits first in line has it next.
-- KEYS and the claim as for acquire. ARGV[9] mode, [10] the record, [11] ms that the hold had left, [12] amount and code of a
-- refusal to keep with the marker, or nothing.
-- Returns {1, or 0 if the lease was no longer this acquisition's; what was on record before}.
local claim = claim_at(4, 6)
local mine, found = record(claim, ARGV[9], ARGV[10], ARGV[11], ARGV[12])
if mine then pass_on() else leave(claim.token) end
return {mine and 1 or 0, found}
