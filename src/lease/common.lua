-- What all scripts share; each of them is one atomic step.
--
-- KEYS of a payment: [1] lease: the token of the acquisition that has it. [2] hold: a token and the id in doubt. [3] line:
-- the tokens that wait for the lease, first come first served, one for each worker. KEYS of an id: [4] sent marker: the
-- token that first wrote it, then what the gateway signed (see `marker_of`). [5] known: its outcome on record. [6]
-- replaced: the failure with which it was closed when a fresh id replaced it.
--
-- A record is `<amount>\n<captured|failed|closed>\n<JSON>`. Scripts read its first two lines.
-- What another acquisition wrote is kept under nobody's token: no later call may take it for its own.

local LEASE_MS, HOLD_MS, REMEMBER_MS, GRANT_MS, REPLACED_MS = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local LEASE, HOLD, LINE = KEYS[1], KEYS[2], KEYS[3]

-- Amount and kind of a record; nothing of an absent one.
local function read_record(record)
  if not record then return nil, nil end
  return string.match(record, '^([^\n]*)\n([^\n]*)\n')
end

-- The record of an id that settles a job of this amount: its outcome, or the failure with which it was replaced.
local function on_record(claim, known, replaced)
  if read_record(known) == claim.amount then return known end
  if read_record(replaced) == claim.amount then return replaced end
  return nil
end

-- Gives the lease to the next in line, which claims it by asking again; or to nobody.
local function pass_on()
  local heir = redis.call('LPOP', LINE)
  if heir then
    redis.call('SET', LEASE, heir, 'PX', GRANT_MS)
  else
    redis.call('DEL', LEASE)
  end
end

-- Waits no longer; what was granted meanwhile goes to the next.
local function leave(token)
  redis.call('LREM', LINE, 1, token)
  if redis.call('GET', LEASE) == token then pass_on() end
end

-- Whoever finds the final outcome of an id ends its hold.
local function end_hold_of(token, id, hold)
  if hold and string.sub(hold, #token + 1) == id then redis.call('DEL', HOLD) end
end

-- A sent marker's value behind the token: the digits of the number of replays at which an inquiry last showed that there
-- is no such capture; then, on lines of their own, amount and code of a signed F that need not be about the capture.
local function marker_of(token, mark)
  local denied_at, refused = string.match(string.sub(mark or '', #token + 1), '^(%d*)(.*)$')
  return denied_at or '', refused or ''
end

-- Writes the hold and the sent marker of an id whose capture is sent next; what is there now is given.
local function announce(claim, hold, mark, denied_at)
  local token = claim.token
  local nobody = string.rep('0', #token)
  local holds = (hold and hold ~= token .. claim.id) and nobody or token
  local marks = (mark and string.sub(mark, 1, #token) ~= token) and nobody or token
  local before, refused = marker_of(token, mark)
  if denied_at == '' then denied_at = before end
  redis.call('SET', HOLD, holds .. claim.id, 'PX', HOLD_MS)
  redis.call('SET', claim.mark, marks .. denied_at .. refused, 'PX', REMEMBER_MS)
end

-- Takes the lease, or says why not: {verb, detail, 1 if an earlier acquisition marked the id as sent, ms that the hold had
-- left (-2: none), place in line (-1: none)}. The detail of `known` is the record, of `taken` what the marker tells.
local function take(claim, posts, waits)
  local token, id = claim.token, claim.id
  local now = redis.call('MGET', claim.known, claim.mark, LEASE, HOLD, claim.replaced)
  local known, mark, holder, hold, replaced = now[1], now[2], now[3], now[4], now[5]
  local record = on_record(claim, known, replaced)
  if record or replaced then
    leave(token)
    end_hold_of(token, id, hold)
    return {record and 'known' or 'replaced', record or '', 1, -2, -1}
  end
  local is_anothers = mark and string.sub(mark, 1, #token) ~= token
  local marked = (is_anothers or known) and 1 or 0
  if holder and holder ~= token then
    local place = redis.call('LPOS', LINE, token)
    if waits == '1' then
      place = place or redis.call('RPUSH', LINE, token) - 1
      redis.call('PEXPIRE', LINE, LEASE_MS)
    end
    return {'held', '', marked, -2, place or -1}
  end
  if hold and string.sub(hold, #token + 1) ~= id then
    leave(token)
    return {'hold', '', marked, -2, -1}
  end
  local hold_left = -2
  if hold and string.sub(hold, 1, #token) ~= token then
    hold_left = redis.call('PTTL', HOLD)
  end
  redis.call('LREM', LINE, 1, token)
  redis.call('SET', LEASE, token, 'PX', LEASE_MS)
  if posts == '1' then announce(claim, hold, mark, '') end
  return {'taken', is_anothers and string.sub(mark, #token + 1) or '', marked, hold_left, -1}
end

local RANK = {closed = 1, failed = 2, captured = 3}

-- Records what an acquisition came to. Modes: final (record the outcome, end the hold), close (the same, if the lease was
-- kept until now), replace (the same, and that a fresh id replaces this one), replaced (only that, without the lease, where
-- a failure is on record),
-- end (end the hold), keep (in doubt; `refused`: amount and code to keep with the marker), back (take back what this
-- acquisition wrote), forget (the same, even after the lease was lost: no call was made under it). Says whether the lease
-- was still its own, and what was on record of this id before; that it gives the lease up is the caller's to do.
local function record(claim, mode, outcome, hold_left, refused)
  local token, id = claim.token, claim.id
  local now = redis.call('MGET', LEASE, HOLD, claim.known, claim.replaced, claim.mark)
  local mine, hold, known, replaced, mark = now[1] == token, now[2], now[3], now[4], now[5]
  local held_by_id = hold and string.sub(hold, #token + 1) == id
  local marked_by = mark and string.sub(mark, 1, #token)
  local known_amount, known_kind = read_record(known)
  if mode == 'final' or mine and (mode == 'close' or mode == 'replace') then
    -- True whoever holds the lease by now. A capture stands whatever comes after it, and a verdict about the id stands
    -- against one that need not be about it.
    local _, kind = read_record(outcome)
    if not known or known_kind ~= 'captured' and RANK[kind] >= (RANK[known_kind] or 0) then
      redis.call('SET', claim.known, outcome, 'PX', REMEMBER_MS)
    end
    if held_by_id then redis.call('DEL', HOLD) end
  elseif mine and mode == 'end' then
    if held_by_id then redis.call('DEL', HOLD) end
  elseif mode == 'keep' then
    if refused ~= '' then
      local marker = (marked_by or token) .. marker_of(token, mark) .. '\n' .. refused
      redis.call('SET', claim.mark, marker, 'PX', REMEMBER_MS)
    end
    -- The id was closed for want of a capture while a call of it was under way.
    if not mine and known_kind == 'closed' then redis.call('DEL', claim.known) end
  elseif mode == 'forget' or mine and mode == 'back' then
    if held_by_id then
      if string.sub(hold, 1, #token) == token then
        redis.call('DEL', HOLD)
      elseif mine and tonumber(hold_left) > 0 then
        redis.call('PEXPIRE', HOLD, hold_left)
      end
    end
    if marked_by == token then redis.call('DEL', claim.mark) end
  end
  local is_recorded = known_amount == claim.amount or read_record(replaced) == claim.amount
  if (mode == 'replaced' and is_recorded or mine and mode == 'replace') and known_kind ~= 'captured' then
    redis.call('SET', claim.replaced, outcome, 'PX', REPLACED_MS)
  end
  local found = known
  if known_amount ~= claim.amount and known_kind ~= 'captured' then found = replaced or nil end
  -- A verdict about the id is final for each amount; one for want of a capture only for its own, under the lease.
  local is_final = known_kind == 'captured' or known_kind == 'failed'
  local amount, kind = read_record(found)
  if is_final or amount == claim.amount and (mine or kind ~= 'closed') then end_hold_of(token, id, hold) end
  return mine, found or ''
end

-- What an acquisition asks for, from where it stands in KEYS and ARGV.
local function claim_at(key, arg)
  return {
    mark = KEYS[key], known = KEYS[key + 1], replaced = KEYS[key + 2],
    token = ARGV[arg], id = ARGV[arg + 1], amount = ARGV[arg + 2],
  }
end
