-- What all scripts share; each of them is one atomic step.
-- KEYS[1] lease: the token of the acquisition that has it. KEYS[2] hold: a token and the id in doubt. KEYS[3] line: the
-- tokens that wait for the lease, first come first served, one for each worker.
-- ARGV[1] lease ms, ARGV[2] hold ms, ARGV[3] remember ms, ARGV[4] ms in which a granted lease must be claimed.
-- What another acquisition wrote is kept under nobody's token: no later call may take it for its own.

-- Gives the lease to the next in line, which claims it by asking again; or to nobody.
local function pass_on()
  local heir = redis.call('LPOP', KEYS[3])
  if heir then
    redis.call('SET', KEYS[1], heir, 'PX', ARGV[4])
  else
    redis.call('DEL', KEYS[1])
  end
end

-- Waits no longer; what was granted meanwhile goes to the next.
local function leave(token)
  redis.call('LREM', KEYS[3], 1, token)
  if redis.call('GET', KEYS[1]) == token then pass_on() end
end

-- Writes the hold and the mark of an id whose capture is sent next; what is there now is given.
local function announce(token, id, mark_key, hold, mark)
  local nobody = string.rep('0', #token)
  local holds = (hold and hold ~= token .. id) and nobody or token
  local marks = (mark and mark ~= token) and nobody or token
  redis.call('SET', KEYS[2], holds .. id, 'PX', ARGV[2])
  redis.call('SET', mark_key, marks, 'PX', ARGV[3])
end

-- Takes the lease, or says why not: {verb, detail, 1 if an earlier acquisition marked the id as sent, ms that the hold had
-- left (-2: none), place in line (-1: none)}.
local function take(token, id, amount, posts, waits, mark_key, known_key)
  local now = redis.call('MGET', known_key, mark_key, KEYS[1], KEYS[2])
  local known, mark, holder, hold = now[1], now[2], now[3], now[4]
  if known and string.sub(known, 1, #amount + 1) == amount .. '\n' then
    leave(token)
    return {'known', string.sub(known, #amount + 2), 1, -2, -1}
  end
  local marked = (mark and mark ~= token or known) and 1 or 0
  if holder and holder ~= token then
    local place = redis.call('LPOS', KEYS[3], token)
    if waits == '1' then
      place = place or redis.call('RPUSH', KEYS[3], token) - 1
      redis.call('PEXPIRE', KEYS[3], ARGV[1])
    end
    return {'held', '', marked, -2, place or -1}
  end
  if hold and string.sub(hold, #token + 1) ~= id then
    leave(token)
    return {'hold', '', marked, -2, -1}
  end
  local hold_left = -2
  if hold and string.sub(hold, 1, #token) ~= token then
    hold_left = redis.call('PTTL', KEYS[2])
  end
  redis.call('LREM', KEYS[3], 1, token)
  redis.call('SET', KEYS[1], token, 'PX', ARGV[1])
  if posts == '1' then announce(token, id, mark_key, hold, mark) end
  return {'taken', '', marked, hold_left, -1}
end

-- Records what an acquisition came to. Modes: final (remember the outcome, end the hold), close (the same, if the lease was
-- kept until now), end (end the hold), keep, back (take
-- back what this acquisition wrote), forget (the same, even after the lease was lost: no call was made under it). Says
-- whether the lease was still its own; that it gives up is the caller's to do.
local function record(token, id, mode, outcome, hold_left, mark_key, known_key)
  local now = redis.call('MGET', KEYS[1], KEYS[2], known_key)
  local mine, hold, before = now[1] == token, now[2], now[3]
  local held_by_id = hold and string.sub(hold, #token + 1) == id
  if mode == 'final' or mine and mode == 'close' then
    -- True whoever holds the lease by now; and a capture stands whatever comes after it.
    if not (before and string.find(before, '\n{"captured"', 1, true)) then
      redis.call('SET', known_key, outcome, 'PX', ARGV[3])
    end
    if held_by_id then redis.call('DEL', KEYS[2]) end
  elseif mine and mode == 'end' then
    if held_by_id then redis.call('DEL', KEYS[2]) end
  elseif mode == 'forget' or mine and mode == 'back' then
    if held_by_id then
      if string.sub(hold, 1, #token) == token then
        redis.call('DEL', KEYS[2])
      elseif mine and tonumber(hold_left) > 0 then
        redis.call('PEXPIRE', KEYS[2], hold_left)
      end
    end
    if redis.call('GET', mark_key) == token then redis.call('DEL', mark_key) end
  end
  return mine
end

