-- Gives the lease its full time again before another call; if that is a capture, writes hold and mark as well.
-- KEYS and ARGV as for acquire. Returns 1, or 0 if the lease is no longer this acquisition's.
if redis.call('GET', KEYS[1]) ~= ARGV[5] then
  return 0
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
if ARGV[8] == '1' then
  announce(ARGV[5], ARGV[6], KEYS[4], redis.call('GET', KEYS[2]), redis.call('GET', KEYS[4]))
end
return 1
