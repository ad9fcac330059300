-- Gives the lease its full time again before another call. If that call is a capture, also writes
-- the in-doubt block and the sent marker.
-- Returns {'kept'}; {'lost'} if this acquisition no longer has the lease; {'recorded'} if the id
-- has a recorded outcome.
local posts = ARGV[9] == '1' -- The call is a capture.
-- The number of replays at which an inquiry has shown that there is no such capture, or empty.
local denied_at = ARGV[10]

local now = redis.call('MGET', LEASE, CLAIM.recorded, CLAIM.replaced, BLOCK, CLAIM.marker)
local holder, recorded, replaced, block, marker = now[1], now[2], now[3], now[4], now[5]
if holder ~= CLAIM.token then return {'lost'} end
if replaced or deciding_record(CLAIM, recorded, replaced) then return {'recorded'} end
redis.call('PEXPIRE', LEASE, LEASE_MS)
if posts then record_intent(CLAIM, block, marker, denied_at) end
return {'kept'}
