-- Asks for one of the first FILES files at random, and prints what the lab parses: wrk's own summary lacks p99.9. Its
-- latencies are corrected for coordinated omission, so they count more requests than were answered.
local threads = 0

function setup(thread)
    threads = threads + 1
    thread:set("seed", threads)
end

function init(args)
    files = tonumber(args[1]) or 2048
    math.randomseed(seed)
end

function request()
    return wrk.format("GET", "/" .. math.random(0, files - 1))
end

function done(summary, latency, requests)
    local e = summary.errors
    print(string.format("requests %d %d", summary.requests, summary.duration))
    print(string.format("errors %d", e.connect + e.read + e.write + e.status + e.timeout))
    local k, total, longest = 0, 0, 0
    local counts = {}
    for i = 1, #latency do
        local us, count = latency(i)
        while k < 40 and us > math.floor(10 * 10 ^ (k / 6) + 0.5) do
            k = k + 1
        end
        counts[k] = (counts[k] or 0) + count
        total = total + count
        longest = us
    end
    local at = function(percent) return total > 0 and latency:percentile(percent) or 0 end
    print(string.format("times %d %d %d %d %d", total, at(50), at(99), at(99.9), longest))
    for k = 0, 40 do
        if counts[k] then
            print(string.format("bucket %d %d", math.floor(10 * 10 ^ (k / 6) + 0.5), counts[k]))
        end
    end
end
