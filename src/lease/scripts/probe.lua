-- Runs each command that the other scripts run, at the keys of a payment that does not exist, and
-- leaves nothing behind. If a permission, a replica or a full memory stops this script, it would
-- stop the others, too. KEYS as for the others. Returns 'OK', or the error of the first command
-- that was refused.
local refused

local function try(command, ...)
  if refused then return end
  local reply = redis.pcall(command, ...)
  if type(reply) == 'table' and reply.err then refused = {command, reply.err} end
end

-- The keys expire by themselves if a refusal prevents the DEL below.
for _, key in ipairs(KEYS) do try('SET', key, 'probe', 'PX', 1000) end
try('GET', KEYS[1])
try('MGET', unpack(KEYS))
try('EXISTS', KEYS[1])
try('PTTL', KEYS[1])
try('PEXPIRE', KEYS[1], 1000)
try('DEL', unpack(KEYS))
try('RPUSH', KEYS[1], 'probe', 'probe')
try('PEXPIRE', KEYS[1], 1000)
try('LPOS', KEYS[1], 'probe')
try('LLEN', KEYS[1])
try('LREM', KEYS[1], 1, 'probe')
try('LPOP', KEYS[1])
if not refused then return 'OK' end

-- When an ACL refuses a command in a script, the error has the code ERR and no command name.
local command, text = refused[1], refused[2]
if string.sub(text, 1, 4) == 'ERR ' then
  local is_access = string.find(text, 'The user executing the script', 1, true)
    or string.find(text, 'ACL failure', 1, true)
  text = (is_access and 'NOPERM ' or 'ERR ') .. command .. ' in a script: ' .. string.sub(text, 5)
end
return redis.error_reply(text)
