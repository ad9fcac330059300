-- Releases the lease, if this acquisition still has it, and passes it to the first of the waiting
-- list.
-- Returns what the function `released` returns.
local result = {
  mode = ARGV[9], -- See the function `record`.
  outcome = ARGV[10], -- The outcome to record, or empty.
  block_left_ms = ARGV[11], -- The milliseconds that the in-doubt block had left; 0 if none.
  refused = ARGV[12], -- Amount and code of a signed F to keep with the sent marker, or empty.
}

local is_ours, found = record(CLAIM, result)
if is_ours then pass_on() else leave(CLAIM.token) end
return released(is_ours, found)
