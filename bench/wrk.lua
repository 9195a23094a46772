-- What wrk sends, by the first argument after `--`, and its figures as one line of JSON.
--   plain           the same head every time
--   heads           one header line that differs in every request
--   browser         a head as browsers send it, with lines that differ in every request
--   close           every request on a new connection
--   body BYTES      POST

local BROWSER = {
  ["User-Agent"] = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
  ["Accept"] = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
  ["Accept-Language"] = "en-GB,en;q=0.7,de;q=0.3",
  ["Accept-Encoding"] = "gzip, deflate, br, zstd",
  ["Referer"] = "https://shop.example/basket",
  ["Origin"] = "https://shop.example",
  ["Upgrade-Insecure-Requests"] = "1",
  ["Sec-Fetch-Dest"] = "document",
  ["Sec-Fetch-Mode"] = "navigate",
  ["Sec-Fetch-Site"] = "same-origin",
  ["Priority"] = "u=0, i",
}

local function changing(lines)
  local start = wrk.format():sub(1, -3) -- without the empty line
  local count = 0
  request = function()
    count = count + 1
    return start .. string.format(lines, count, count) .. "\r\n"
  end
end

function init(arguments)
  local kind = arguments[1]
  if kind == "heads" then
    changing("X-Request-Id: 5d3c0f21-%012d\r\n")
  elseif kind == "browser" then
    for name, value in pairs(BROWSER) do wrk.headers[name] = value end
    changing("X-Request-Id: 5d3c0f21-%012d\r\nCookie: theme=dark; session=8a0e3f5b7c9d%012d\r\n")
  elseif kind == "close" then
    wrk.headers["Connection"] = "close"
  elseif kind == "body" then
    wrk.method = "POST"
    wrk.headers["Content-Type"] = "application/octet-stream"
    wrk.body = string.rep("x", tonumber(arguments[2]))
  end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\nfigures {"requests": %d, "bytes": %d, "microseconds": %d, "p50_us": %d, "p99_us": %d, '
      .. '"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}\n',
    summary.requests, summary.bytes, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
