-- One request a call: prefix .. user .. suffix, the user drawn uniformly, or by Zipf's law (exponent 1, user 0 first).
-- Arguments: folder, users, number format, seed, how often the number is there (commas between), "zipf" or nothing.
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
  users, shape, times = tonumber(args[2]), args[3], tonumber(args[5])
  zipf = args[6] == "zipf"
  for line in io.lines(args[1] .. "/headers") do
    local name, value = line:match("^(.-): (.*)$")
    head[name] = value
  end
  math.randomseed(os.time() + tonumber(args[4]))
end

function request()
  -- A share ln(k) / ln(users) of the requests is for the first k users.
  local number = zipf and math.floor(users ^ math.random()) or math.random(users)
  local user = string.format(shape, math.min(number, users) - 1)
  return wrk.format("POST", nil, head, prefix .. user .. string.rep("," .. user, times - 1) .. suffix)
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\nRESULT {"requests":%d,"duration_us":%d,"p50":%.1f,"p90":%.1f,"p99":%.1f,"max":%.1f,"status":%d,"timeout":%d,"socket":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(90), latency:percentile(99),
    latency.max, e.status, e.timeout, e.connect + e.read + e.write))
end
