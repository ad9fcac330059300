-- Gives the lease back, by its token.
-- KEYS as for acquire. ARGV: token, captureRequestId, mode, known outcome, remember ms, ms the hold had left (-2: none).
-- Modes: final (remember the outcome, end the hold), end (end the hold), keep, back (take back what this acquisition
-- wrote), forget (the same, even after the lease was lost: no call was made under it). Returns 1, or 0 if the lease was no longer this acquisition's.
local token, id, mode = ARGV[1], ARGV[2], ARGV[3]
local mine = redis.call('GET', KEYS[1]) == token
local hold = redis.call('GET', KEYS[2])
local held_by_id = hold and string.sub(hold, #token + 1) == id
if mode == 'final' then
  -- True whoever holds the lease by now; and a capture stands whatever comes after it.
  local before = redis.call('GET', KEYS[4])
  if not (before and string.find(before, '\n{"captured"', 1, true)) then
    redis.call('SET', KEYS[4], ARGV[4], 'PX', ARGV[5])
  end
  if held_by_id then redis.call('DEL', KEYS[2]) end
elseif mine and mode == 'end' then
  if held_by_id then redis.call('DEL', KEYS[2]) end
elseif mode == 'forget' or mine and mode == 'back' then
  if held_by_id then
    if string.sub(hold, 1, #token) == token then
      redis.call('DEL', KEYS[2])
    elseif mine and tonumber(ARGV[6]) > 0 then
      redis.call('PEXPIRE', KEYS[2], ARGV[6])
    end
  end
  if redis.call('GET', KEYS[3]) == token then redis.call('DEL', KEYS[3]) end
end
if mine then
  redis.call('DEL', KEYS[1])
  return 1
end
return 0
