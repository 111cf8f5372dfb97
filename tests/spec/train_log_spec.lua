-- mc.train: the run log, the progress line and the balance metrics.
local json = require "dkjson"
local tensor = require "mascon.create"
local train = require "mascon.train"

local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read("*a")
  file:close()
  return text
end

local function write(path, text)
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
end

-- The lines of a log, decoded; each must be complete JSON.
local function lines_of(path)
  local out = {}
  for line in read(path):gmatch("([^\n]*)\n") do
    local value, _, why = json.decode(line)
    assert.is_nil(why)
    out[#out + 1] = value
  end
  return out
end

-- A clock that stands where it is set.
local function fake_clock(at)
  local clock = { now = at or 0 }
  return clock, function() return clock.now end
end

-- A stream that keeps what is written.
local function fake_stream()
  local stream = { text = "" }
  function stream:write(...)
    self.text = self.text .. table.concat({ ... })
    return self
  end
  function stream.flush() end
  return stream
end

describe("Logger", function()
  local path
  before_each(function() path = os.tmpname() end)
  after_each(function() os.remove(path) end)

  it("begins with a start line of the configuration and the environment", function()
    local _, now = fake_clock(1700000000.25)
    local log = train.Logger{ path = path, clock = now, config = { lr = 0.5, dtype = "float32" } }
    log:close()
    local lines = lines_of(path)
    assert.equal(1, #lines)
    assert.equal("start", lines[1].kind)
    assert.equal(1700000000.25, lines[1].t)
    assert.is_false(lines[1].resume)
    assert.same({ lr = 0.5, dtype = "float32" }, lines[1].config)
    assert.equal(jit.version, lines[1].environment.luajit)
    assert.is_number(lines[1].environment.threads)
  end)

  it("writes t, kind, step and tokens first and the metrics in sorted order", function()
    local _, now = fake_clock(12)
    local log = train.Logger{ path = path, clock = now }
    log:log("step", { loss = 1.5, tokens = 4096, ["moe/cv"] = 0.25, step = 2, grad_norm = 3 })
    local line = read(path):match("\n(.-)\n$")
    assert.equal('{"t":12,"kind":"step","step":2,"tokens":4096,"grad_norm":3,"loss":1.5,"moe/cv":0.25}', line)
    log:close()
  end)

  it("writes numbers that are not finite as strings, in nested values too", function()
    local log = train.Logger{ path = path }
    log:log("warn", { loss = 0 / 0, a = math.huge, b = -math.huge, list = { 1, 0 / 0 } })
    log:close()
    local line = lines_of(path)[2]
    assert.equal("nan", line.loss)
    assert.equal("inf", line.a)
    assert.equal("-inf", line.b)
    assert.same({ 1, "nan" }, line.list)
  end)

  it("takes one-element tensors as numbers", function()
    local log = train.Logger{ path = path }
    log:log("step", { loss = tensor.tensor{ 0.75 } })
    log:close()
    assert.equal(0.75, lines_of(path)[2].loss)
  end)

  it("has every line in the file before the next one is written", function()
    local log = train.Logger{ path = path }
    log:log("step", { step = 1 })
    assert.equal(2, #lines_of(path))
    log:log("step", { step = 2 })
    assert.equal(3, #lines_of(path))
    log:close()
  end)

  it("appends on resume with a start line of its own", function()
    train.Logger{ path = path }:close()
    train.Logger{ path = path, resume = true }:close()
    local lines = lines_of(path)
    assert.equal(2, #lines)
    assert.is_true(lines[2].resume)
  end)

  it("replaces an older file without resume", function()
    write(path, '{"old":1}\n')
    train.Logger{ path = path }:close()
    assert.equal(1, #lines_of(path))
  end)

  it("resumes after a line that a kill cut short", function()
    write(path, '{"kind":"start"}\n{"kind":"st')
    train.Logger{ path = path, resume = true }:close()
    local text = read(path)
    assert.equal('{"kind":"start"}\n{"kind":"st\n{"t":', text:sub(1, 34))
    assert.equal("start", json.decode(text:match("([^\n]*)\n$")).kind)
  end)

  it("writes equal content as equal bytes", function()
    local _, now = fake_clock(1)
    local names = { "zeta", "alpha", "m", "b", "c", "d", "e", "f", "g" }
    local function bytes(first, last, by)
      local fields = {}
      for i = first, last, by do fields[names[i]] = i end
      train.Logger{ path = path, clock = now, config = fields }:close()
      return read(path)
    end
    assert.equal(bytes(1, #names, 1), bytes(#names, 1, -1))
  end)

  it("rejects a kind that is not in the list", function()
    local log = train.Logger{ path = path }
    assert.error_matches(function() log:log("stpe", {}) end,
      'logger: kind is "stpe", wanted one of: start, step, eval, moe, ckpt, warn, end')
    log:close()
  end)

  it("rejects values that JSON cannot hold and reserved names", function()
    local log = train.Logger{ path = path }
    assert.error_matches(function() log:log("step", { f = print }) end, "logger: f is a function, wanted")
    assert.error_matches(function() log:log("step", { t = 1 }) end, 'a metric cannot be named "t"')
    assert.equal(1, #lines_of(path))
    log:close()
  end)

  it("rejects unknown options and a folder that is not there", function()
    assert.error_matches(function() train.Logger{ path = path, apend = true } end, "unknown option apend")
    assert.error_matches(function() train.Logger{ path = "/nowhere/log.jsonl" } end,
      "Logger: /nowhere/log.jsonl: No such file or directory")
  end)

  it("says so when it is closed", function()
    local log = train.Logger{ path = path }
    log:close()
    log:close()
    assert.error_matches(function() log:log("end") end, "is closed")
  end)

  it("says so when the disk is full, compiled or not", function()
    for _ = 1, 200 do
      assert.error_matches(function() train.Logger{ path = "/dev/full" } end,
        "logger: /dev/full: No space left on device")
    end
  end)
end)

describe("Progress away from a terminal", function()
  local clock, now, stream
  before_each(function()
    clock, now = fake_clock(100)
    stream = fake_stream()
  end)

  local function new(options)
    options.clock, options.stream = now, stream
    if options.terminal == nil then options.terminal = false end
    return train.Progress(options)
  end

  local function line_count()
    return select(2, stream.text:gsub("\n", "\n"))
  end

  it("is silent for 5 seconds, then prints a line every 5 % or 30 seconds", function()
    local bar = new{ total = 1000 }
    clock.now = 104.9
    bar:update(100)
    assert.equal("", stream.text)
    clock.now = 105
    bar:update(100)
    assert.equal(1, line_count())
    clock.now = 106
    bar:update(149)
    assert.equal(1, line_count())
    bar:update(150)
    assert.equal(2, line_count())
    clock.now = 135.9
    bar:update(151)
    assert.equal(2, line_count())
    clock.now = 136
    bar:update(152)
    assert.equal(3, line_count())
  end)

  it("shows done, total, share, rate, elapsed and left time, and the note", function()
    local bar = new{ total = 1000, scale = 2048, rate_unit = "tokens" }
    clock.now = 110
    bar:update(100, "loss 1.93")
    assert.equal("steps 100/1000  10%  20.5k tokens/s  0:10  1:30 left  loss 1.93\n", stream.text)
  end)

  it("holds no control characters", function()
    local bar = new{ total = 10 }
    for i = 1, 10 do
      clock.now = clock.now + 31
      bar:update(i, "loss 2")
    end
    bar:message("saved")
    bar:finish()
    assert.is_nil(stream.text:gsub("\n", ""):find("%c"))
  end)

  it("ends with one line, not repeated when it was just shown", function()
    local bar = new{ total = 10 }
    clock.now = 101
    bar:update(10)
    bar:finish()
    bar:finish()
    assert.equal("steps 10/10 100%  10 steps/s  0:01\n", stream.text)
    clock.now = 140
    local other = new{ total = 10 }
    clock.now = 180
    other:update(10)
    other:finish()
    assert.equal(2, line_count())
  end)

  it("counts only its own work after a resume", function()
    local bar = new{ total = 1000, start = 500 }
    clock.now = 110
    bar:update(600)
    assert.matches("steps 600/1000  60%%  10 steps/s  0:10  0:40 left", stream.text)
  end)

  it("follows a change of speed smoothly", function()
    local bar = new{ total = 100000, terminal = true, width = 200 }
    clock.now = 110
    bar:update(1000) -- 100 a second
    clock.now = 120
    bar:update(1000 + 2000) -- 200 a second for one time constant: 100 / e + 200 (1 - 1 / e)
    local rate = tonumber(stream.text:match("([%d.]+) steps/s[^\r]*$"))
    assert.near(100 / math.exp(1) + 200 * (1 - 1 / math.exp(1)), rate, 0.5) -- shown without decimals
  end)

  it("takes a total of nothing", function()
    local bar = new{ total = 0 }
    bar:finish()
    assert.equal("steps 0/0 100%  0:00\n", stream.text)
  end)

  it("rejects positions beyond the total and unknown options", function()
    assert.error_matches(function() new{ total = 5 }:update(6) end, "progress: 6 is out of range, wanted 0 to 5")
    assert.error_matches(function() new{ total = 5, start = 6 } end, "start is 6, beyond the total of 5")
    assert.error_matches(function() new{ totl = 5 } end, "unknown option totl")
  end)
end)

describe("Progress on a terminal", function()
  local clock, now, stream
  before_each(function()
    clock, now = fake_clock()
    stream = fake_stream()
  end)

  local function new(options)
    options.clock, options.stream, options.terminal = now, stream, true
    return train.Progress(options)
  end

  it("draws at most ten times a second", function()
    local bar = new{ total = 1000, width = 80 }
    for i = 1, 1000 do
      clock.now = i / 1000
      bar:update(i)
    end
    local drawings = select(2, stream.text:gsub("\r", "\r"))
    assert.is_true(drawings >= 9 and drawings <= 10, "drawn " .. drawings .. " times")
  end)

  it("never takes more than one line, whatever the width and the note", function()
    for _, width in ipairs{ 20, 40, 80, 132 } do
      stream.text = ""
      local bar = new{ total = 1000, width = width }
      for i = 1, 20 do
        clock.now = clock.now + 1
        bar:update(i * 50, ("a long note "):rep(i))
      end
      for drawing in stream.text:gmatch("\27%[K([^\r]*)") do
        assert.is_true(#drawing < width, ("%d columns of %d"):format(#drawing, width))
      end
      assert.is_nil(stream.text:find("\n"))
    end
  end)

  it("keeps what matters most on a narrow terminal: the position, the note and the time left", function()
    local function drawn(width)
      stream.text, clock.now = "", 0
      local bar = new{ total = 1800, width = width, scale = 1024, rate_unit = "tokens" }
      clock.now = 60
      bar:update(900, "loss 1.465")
      return (stream.text:gsub("\r\27%[K", ""))
    end
    assert.equal("steps 900/1800  50%  15.4k tokens/s  1:00  1:00 left  loss 1.465", drawn(70))
    assert.equal("900/1800  50%  1:00 left  loss 1.465", drawn(40))
    assert.equal("900/1800  loss 1.465", drawn(30))
    assert.equal("900/1800", drawn(16))
  end)

  it("takes control characters of a note for blanks", function()
    local bar = new{ total = 10, width = 100 }
    clock.now = 1
    bar:update(5, "two\nlines")
    assert.matches("two lines$", stream.text)
  end)

  it("leaves its final state on the screen", function()
    local bar = new{ total = 10, width = 100 }
    clock.now = 1
    bar:update(5)
    clock.now = 1.01
    bar:update(10)
    bar:finish()
    assert.matches("steps 10/10 100%%[^\r]*\n$", stream.text)
  end)

  it("puts a message above the line and draws itself again", function()
    local bar = new{ total = 10, width = 100 }
    clock.now = 1
    bar:update(5)
    bar:message("saved")
    assert.matches("\r\27%[Ksaved\n\r\27%[Ksteps 5/10", stream.text)
  end)
end)

describe("moe_metrics", function()
  it("gives 1, 0 and 1 for an even load", function()
    local m = train.moe_metrics{ 5, 5, 5, 5 }
    assert.same({
      ["moe/cv"] = 0, ["moe/dead_expert_frac"] = 0, ["moe/utilisation_max"] = 1,
      ["moe/utilisation_min"] = 1, ["moe/utilisation_median"] = 1,
      ["moe/expert_diversity"] = m["moe/expert_diversity"],
    }, m)
    assert.near(1, m["moe/expert_diversity"], 1e-15)
  end)

  it("follows its definitions on an uneven load", function()
    local m = train.moe_metrics{ 6, 2, 0, 4 } -- mean 3, shares 1/2, 1/6, 0, 1/3
    assert.near(math.sqrt((9 + 1 + 9 + 1) / 4) / 3, m["moe/cv"], 1e-15)
    assert.equal(0.25, m["moe/dead_expert_frac"])
    assert.equal(2, m["moe/utilisation_max"])
    assert.equal(0, m["moe/utilisation_min"])
    assert.equal(1, m["moe/utilisation_median"])
    local entropy = math.log(2) / 2 + math.log(6) / 6 + math.log(3) / 3
    assert.near(math.exp(entropy) / 4, m["moe/expert_diversity"], 1e-15)
  end)

  it("reports a diversity of 1 / E when one expert takes all", function()
    local m = train.moe_metrics{ 0, 12, 0 }
    assert.near(1 / 3, m["moe/expert_diversity"], 1e-15)
    assert.near(math.sqrt(2), m["moe/cv"], 1e-15)
    assert.near(2 / 3, m["moe/dead_expert_frac"], 1e-15)
  end)

  it("averages layers, except the extremes", function()
    local m = train.moe_metrics{ { 1, 1 }, { 0, 2 } }
    assert.equal(0.5, m["moe/cv"])
    assert.equal(0.25, m["moe/dead_expert_frac"])
    assert.equal(2, m["moe/utilisation_max"])
    assert.equal(0, m["moe/utilisation_min"])
  end)

  it("takes tensors, of one layer or of several", function()
    local one = tensor.tensor({ 6, 2, 0, 4 }, { dtype = "int64" })
    assert.same(train.moe_metrics{ 6, 2, 0, 4 }, train.moe_metrics(one))
    local two = tensor.tensor({ { 1, 1 }, { 0, 2 } }, { dtype = "int64" })
    assert.same(train.moe_metrics{ { 1, 1 }, { 0, 2 } }, train.moe_metrics(two))
    assert.same(train.moe_metrics{ { 1, 1 }, { 6, 2, 0, 4 } },
      train.moe_metrics{ { 1, 1 }, one })
  end)

  it("adds every layer's values on request, layers named from 0", function()
    local m = train.moe_metrics({ { 1, 1 }, { 0, 2 } }, { detailed = true })
    assert.equal(0, m["moe/layer_0/cv"])
    assert.equal(1, m["moe/layer_1/cv"])
    assert.same({ 0, 2 }, m["moe/layer_1/utilisation"])
    assert.is_nil(m["moe/layer_2/cv"])
  end)

  it("gives NaN, not a number that looks like balance, when no token came", function()
    local m = train.moe_metrics{ 0, 0 }
    assert.is_true(m["moe/cv"] ~= m["moe/cv"])
    assert.equal(1, m["moe/dead_expert_frac"])
    local both = train.moe_metrics{ { 2, 0 }, { 0, 0 } }
    assert.is_true(both["moe/utilisation_max"] ~= both["moe/utilisation_max"])
    both = train.moe_metrics{ { 0, 0 }, { 2, 0 } }
    assert.is_true(both["moe/utilisation_min"] ~= both["moe/utilisation_min"])
  end)

  it("rejects what is no list of counts", function()
    assert.error_matches(function() train.moe_metrics{} end, "moe_metrics: wanted numbers by expert, got a table")
    assert.error_matches(function() train.moe_metrics(3) end, "wanted numbers by expert, got 3")
    assert.error_matches(function() train.moe_metrics{ { 1 }, { "a" } } end, "layer 2 is a table")
    assert.error_matches(function() train.moe_metrics({ 1 }, { detail = true }) end, "unknown option detail")
  end)
end)

describe("moe_metrics of a model", function()
  local mc = require "mascon"

  it("reads every MoE layer's last forward", function()
    mc.manual_seed(5)
    local function layer(aux) return mc.nn.MoE { hidden_size = 4, ffn_hidden_size = 3, num_experts = 3,
      aux_loss_coeff = aux } end
    local model = mc.nn.Sequential(layer(0.1), layer(0))
    model(mc.randn(7, 4))
    local one, two = model[1].metrics, model[2].metrics
    local counts = { one.counts:totable(), two.counts:totable() }
    local want = train.moe_metrics(counts)
    for name, v in pairs(train.router_metrics(mc.cat { one.scores, two.scores })) do want[name] = v end
    want["moe/load"], want.aux_loss = counts, one.aux_loss:item()
    assert.same(want, train.moe_metrics(model))
  end)

  it("wants a model with MoE layers that ran", function()
    for _, model in ipairs{ mc.nn.Linear { in_features = 1, out_features = 1 },
      mc.nn.MoE { hidden_size = 4, ffn_hidden_size = 3, num_experts = 3 } } do
      assert.error_matches(function() train.moe_metrics(model) end, "moe_metrics: the model has no MoE layer that ran")
    end
  end)
end)

describe("Checkpoints", function()
  local mc = require "mascon"
  local folder
  before_each(function()
    folder = os.tmpname()
    os.remove(folder)
  end)
  after_each(function() os.execute("rm -rf " .. folder) end)

  it("names the latest file that was saved whole", function()
    local checkpoints = train.Checkpoints { folder = folder .. "/ckpt" }
    assert.is_nil(checkpoints:latest())
    assert.equal(folder .. "/ckpt/step_0000007.h5", checkpoints:save(7, { x = mc.ones(2) }))
    local other = train.Checkpoints { folder = folder .. "/ckpt" }
    assert.equal(folder .. "/ckpt/step_0000007.h5", other:latest())
    checkpoints:save(12, { x = mc.zeros(2) })
    assert.equal(folder .. "/ckpt/step_0000012.h5", other:latest())
    assert.is_true(mc.equal(mc.zeros(2), mc.load(other:latest()).x))
    assert.error(function() checkpoints:save(13, { x = print }) end)
    assert.equal(folder .. "/ckpt/step_0000012.h5", other:latest())
  end)

  it("rejects what is no step and a folder that cannot be made", function()
    local checkpoints = train.Checkpoints { folder = folder }
    assert.error_matches(function() checkpoints:save(1.5, {}) end, "Checkpoints: step")
    assert.error_matches(function() train.Checkpoints { folder = "/proc/none/x" } end, "Checkpoints: /proc/none/x: ")
    assert.error_matches(function() train.Checkpoints {} end, "folder")
  end)
end)

describe("router_metrics", function()
  it("gives the mean entropy and the mean of the best probability", function()
    local m = train.router_metrics{ { 0.5, 0.5, 0 }, { 1, 0, 0 } }
    assert.near(math.log(2) / 2, m["moe/router_entropy"], 1e-15)
    assert.near(0.75, m["moe/router_top1"], 1e-15)
  end)

  it("normalises rows that do not sum to 1 and takes tensors", function()
    local m = train.router_metrics(tensor.tensor{ { 0.25, 0.75 }, { 0.5, 1.5 } })
    local entropy = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    assert.near(entropy, m["moe/router_entropy"], 1e-15)
    assert.near(0.75, m["moe/router_top1"], 1e-15)
  end)

  it("rejects a flat list", function()
    assert.error_matches(function() train.router_metrics{ 0.5, 0.5 } end, "wanted scores %[T, E%], got a table")
  end)
end)
