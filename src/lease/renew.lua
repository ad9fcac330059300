-- Gives the lease its full time again before another call; if that is a capture, writes hold and mark as well.
-- KEYS and ARGV as for acquire. Returns 1, or 0 if the lease is no longer this acquisition's.
local token, id = ARGV[1], ARGV[2]
if redis.call('GET', KEYS[1]) ~= token then
  return 0
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
if ARGV[7] == '1' then
  local hold, mark = redis.call('GET', KEYS[2]), redis.call('GET', KEYS[3])
  local nobody = string.rep('0', #token)
  local holds = (hold and hold ~= token .. id) and nobody or token
  local marks = (mark and mark ~= token) and nobody or token
  redis.call('SET', KEYS[2], holds .. id, 'PX', ARGV[5])
  redis.call('SET', KEYS[3], marks, 'PX', ARGV[6])
end
return 1
