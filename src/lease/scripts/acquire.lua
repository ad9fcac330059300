-- Acquires the lease for one claim, or returns why not. It is safe to repeat with the same token:
-- workers in the waiting list ask again this way.
-- Returns what the function `acquire` returns.
local posts = ARGV[9] == '1' -- A capture is posted at once.
local waits = ARGV[10] == '1' -- Join the waiting list if another acquisition has the lease.

return acquire(CLAIM, posts, waits)
