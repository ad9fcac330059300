-- Takes the lease of a payment for one acquisition, or says why not. Safe to repeat with the same token.
-- KEYS: lease, hold, mark of this id, known outcome of this id.
-- ARGV: token, captureRequestId, amount, lease ms, hold ms, remember ms, 1 if a capture will be posted at once.
-- What another acquisition wrote is kept under nobody's token: no later call may take it for its own.
-- Returns {verb, detail, 1 if an earlier acquisition marked the id as sent, ms the hold had left (-2: none)}.
local token, id, amount = ARGV[1], ARGV[2], ARGV[3]
local known = redis.call('GET', KEYS[4])
if known and string.sub(known, 1, #amount + 1) == amount .. '\n' then
  return {'known', string.sub(known, #amount + 2), 1, -2}
end
local mark = redis.call('GET', KEYS[3])
local marked = (mark and mark ~= token or known) and 1 or 0
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= token then
  return {'held', '', marked, -2}
end
local hold = redis.call('GET', KEYS[2])
if hold and string.sub(hold, #token + 1) ~= id then
  return {'hold', '', marked, -2}
end
local hold_left = -2
if hold and string.sub(hold, 1, #token) ~= token then
  hold_left = redis.call('PTTL', KEYS[2])
end
redis.call('SET', KEYS[1], token, 'PX', ARGV[4])
if ARGV[7] == '1' then
  local nobody = string.rep('0', #token)
  local holds = (hold and hold ~= token .. id) and nobody or token
  local marks = (mark and mark ~= token) and nobody or token
  redis.call('SET', KEYS[2], holds .. id, 'PX', ARGV[5])
  redis.call('SET', KEYS[3], marks, 'PX', ARGV[6])
end
return {'taken', '', marked, hold_left}
