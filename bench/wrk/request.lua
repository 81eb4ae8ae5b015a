-- One request a call: prefix .. user .. suffix, the user drawn uniformly or by Zipf's law (exponent 1).
-- Arguments: folder, users, number format, seed, how often the number is there (commas between), "uniform" or "zipf".
-- The user is formatted to one width, so that the JSON header before the binary tensor keeps its length.
local prefix, suffix, shape, users, times, zipf
local head = {}

local function read(path)
  local f = assert(io.open(path, "rb"))
  local text = f:read("*a")
  f:close()
  return text
end

function init(args)
  prefix, suffix = read(args[1] .. "/prefix"), read(args[1] .. "/suffix")
  users, shape, times, zipf = tonumber(args[2]), args[3], tonumber(args[5]), args[6] == "zipf"
  for line in io.lines(args[1] .. "/headers") do
    local name, value = line:match("^(.-): (.*)$")
    head[name] = value
  end
  math.randomseed(os.time() + tonumber(args[4]))
end

-- A rank k with probability about 1/k, and neighbours in rank far from each other in the store.
local function drawn()
  if not zipf then
    return math.random(users) - 1
  end
  return math.floor(users ^ math.random()) * 514229 % users
end

function request()
  local user = string.format(shape, drawn())
  return wrk.format("POST", nil, head, prefix .. user .. string.rep("," .. user, times - 1) .. suffix)
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\nRESULT {"requests":%d,"duration_us":%d,"p50":%.1f,"p90":%.1f,"p99":%.1f,"max":%.1f,"status":%d,"timeout":%d,"socket":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(90), latency:percentile(99),
    latency.max, e.status, e.timeout, e.connect + e.read + e.write))
end
