-- Gives the lease its full time again before another call. If that call is a capture, also writes
-- the in-doubt block and the sent marker.
-- KEYS and the claim as for acquire. ARGV[9]: 1 before a capture. ARGV[10]: the number of replays
-- at which an inquiry has shown that there is no such capture, or empty.
-- Returns 1; 0 if this acquisition no longer has the lease; 2 if the id has a recorded outcome.
local claim = claim_at(4, 6)
local now = redis.call('MGET', LEASE, claim.known, claim.replaced, HOLD, claim.mark)
if now[1] ~= claim.token then return 0 end
if now[3] or on_record(claim, now[2], now[3]) then return 2 end
redis.call('PEXPIRE', LEASE, LEASE_MS)
if ARGV[9] == '1' then announce(claim, now[4], now[5], ARGV[10]) end
return 1
