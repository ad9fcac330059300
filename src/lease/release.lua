-- Gives the lease back, by its token; whoever waits first in line has it next.
-- KEYS as for acquire. ARGV[5] token, [6] captureRequestId, [7] mode, [8] known outcome, [9] ms that the hold had left.
-- Returns 1, or 0 if the lease was no longer this acquisition's.
local mine = record(ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9], KEYS[4], KEYS[5])
if mine then pass_on() else leave(ARGV[5]) end
return mine and 1 or 0
