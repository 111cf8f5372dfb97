--- Progress: how far a long job is, on standard error.
--
-- On a terminal one line that is redrawn at most ten times a second; elsewhere plain lines without
-- control characters: the first after 5 s, then after every 30 s or 5 %, and one at the end. It shows
-- done/total, %, rate, elapsed time, the time left by a smoothed rate, and a text of the caller's. A
-- resumed job starts at its position and its rate counts only what was done since.
local ffi = require "ffi"
local system = require "system"
local term = require "term"
local args = require "mascon.args"

ffi.cdef [[
  int ioctl(int fd, unsigned long request, ...);
  int fileno(void *stream);
]]

local Progress = {}
Progress.__index = Progress

local REDRAW = 0.1 -- seconds between two drawings on a terminal
local FIRST_LINE, NEXT_LINE, NEXT_SHARE = 5, 30, 0.05 -- plain lines: seconds, seconds, of the total
local SMOOTHING = 10 -- seconds after which a measured rate counts 1/e
local DEFAULT_WIDTH, BAR_MIN, BAR_MAX = 80, 8, 30
local BAR = 8 -- the bar's rank: the first to go where the line is too narrow
local ERASE_LINE = "\r\27[K"
local TIOCGWINSZ = 0x5413 -- Linux: asks a terminal for {rows, columns, x pixels, y pixels}

local function terminal_width(stream)
  local size = ffi.new("uint16_t[4]")
  if ffi.C.ioctl(ffi.C.fileno(stream), TIOCGWINSZ, size) == 0 and size[1] > 0 then
    return size[1]
  end
  return DEFAULT_WIDTH
end

local function is_terminal(stream)
  return io.type(stream) == "file" and term.isatty(stream) and os.getenv("TERM") ~= "dumb"
end

-- 0:07, 12:05, 1:02:03
local function clock_text(seconds)
  seconds = math.floor(seconds + 0.5)
  local hours, minutes = math.floor(seconds / 3600), math.floor(seconds / 60) % 60
  if hours > 0 then return ("%d:%02d:%02d"):format(hours, minutes, seconds % 60) end
  return ("%d:%02d"):format(minutes, seconds % 60)
end

-- 950, 21.3k, 4.40M
local function short_number(v)
  if v >= 1e9 then return ("%.2fG"):format(v / 1e9) end
  if v >= 1e6 then return ("%.2fM"):format(v / 1e6) end
  if v >= 1e4 then return ("%.1fk"):format(v / 1e3) end
  if v >= 100 or v == math.floor(v) then return ("%.0f"):format(v) end
  return ("%.2f"):format(v)
end

--- Starts a progress line.
-- @tparam table options `total` units of work; `start`, the units done before (default 0); `unit`, their
--   name (default "steps"); `rate_unit` and `scale`: what a second's work is counted in, and how many of it are in
--   one unit (default: unit and 1); `stream` (default io.stderr); `terminal`, `width` (columns), `clock`
--   (monotonic seconds): found out unless given
-- @usage local bar = mc.train.Progress{total = steps, scale = 16 * 128, rate_unit = "tokens"}
function Progress.new(options)
  local o = args.options("Progress", options, {
    total = { "natural", required = true },
    start = { "natural", 0 },
    unit = { "string", "steps" },
    rate_unit = { "string" },
    scale = { "number", 1 },
    stream = { "any", io.stderr },
    terminal = { "boolean" },
    width = { "positive" },
    clock = { "function", system.monotime },
  })
  if o.start > o.total then
    args.raise(("Progress: start is %d, beyond the total of %d"):format(o.start, o.total))
  end
  if o.terminal == nil then o.terminal = is_terminal(o.stream) end
  local now = o.clock()
  return setmetatable({
    total = o.total, start = o.start, done = o.start, note = "",
    _unit = o.unit, _rate_unit = o.rate_unit or o.unit, _scale = o.scale,
    _stream = o.stream, _terminal = o.terminal, _width = o.width, _clock = o.clock,
    _began = now, _measured = { time = now, done = o.start }, _rate = nil,
    _shown = nil, -- {time, done} of the last drawing or line
    _finished = false,
  }, Progress)
end

-- Folds the work since the last measurement into the rate (units a second).
function Progress:_measure(now)
  local last = self._measured
  local seconds = now - last.time
  if seconds <= 0 or self.done == last.done then return end
  local fresh = (self.done - last.done) / seconds
  local keep = self._rate and math.exp(-seconds / SMOOTHING) or 0
  self._rate = keep * (self._rate or 0) + (1 - keep) * fresh
  last.time, last.done = now, self.done
end

-- The pieces of the line in their order, each {rank, text}: where the line is too narrow, the highest ranks go first.
function Progress:_pieces(now)
  local pieces = {
    { 6, self._unit .. " " },
    { 1, ("%d/%d"):format(self.done, self.total) },
    { 4, (" %3d%%"):format(math.floor(self:_share() * 100)) },
    { BAR, "" },
  }
  local bar = pieces[#pieces]
  local function add(rank, text) pieces[#pieces + 1] = { rank, "  " .. text } end
  if self._rate then add(5, ("%s %s/s"):format(short_number(self._rate * self._scale), self._rate_unit)) end
  add(7, clock_text(now - self._began))
  if self._rate and self.done < self.total then
    add(3, clock_text((self.total - self.done) / self._rate) .. " left")
  end
  if self.note ~= "" then add(2, self.note) end
  return pieces, bar
end

function Progress:_share()
  return self.total > 0 and self.done / self.total or 1
end

local function join(pieces, highest)
  local texts = {}
  for _, piece in ipairs(pieces) do
    if piece[1] <= highest then texts[#texts + 1] = piece[2] end
  end
  return table.concat(texts)
end

function Progress:_draw(now)
  local pieces, bar = self:_pieces(now)
  local width = (self._width or terminal_width(self._stream)) - 1 -- the last column would wrap
  local room = math.min(BAR_MAX, width - #join(pieces, BAR - 1) - 4) -- 4: blanks and brackets
  if room >= BAR_MIN then
    local full = math.floor(self:_share() * room)
    bar[2] = ("  [%s%s]"):format(("#"):rep(full), ("."):rep(room - full))
  end
  local rank = BAR
  while rank > 1 and #join(pieces, rank) > width do rank = rank - 1 end
  self._stream:write(ERASE_LINE, join(pieces, rank):sub(1, width))
  self._stream:flush()
end

function Progress:_show(now)
  if self._terminal then
    self:_draw(now)
  else
    self._stream:write(join((self:_pieces(now)), BAR), "\n")
    self._stream:flush()
  end
  self._shown = { time = now, done = self.done }
end

function Progress:_is_due(now)
  local shown = self._shown
  if self._terminal then return not shown or now - shown.time >= REDRAW end
  if not shown then return now - self._began >= FIRST_LINE end
  return now - shown.time >= NEXT_LINE or self.done - shown.done >= NEXT_SHARE * self.total
end

--- States the position; shows it when it is time to.
-- @tparam int done units done, of `total`
-- @tparam[opt] string note a short text such as "loss 1.93"; stays until replaced
function Progress:update(done, note)
  self.done = args.integer("progress", done, 0, self.total)
  if note then self.note = note:gsub("%c", " ") end
  local now = self._clock()
  if self:_is_due(now) then
    self:_measure(now)
    self:_show(now)
  end
end

--- Writes a line of text above the progress line.
function Progress:message(text)
  self._stream:write(self._terminal and ERASE_LINE or "", text, "\n")
  if self._terminal and self._shown and not self._finished then self:_draw(self._clock()) end
  self._stream:flush()
end

--- Shows the final state and leaves it on the screen; a second time is fine.
function Progress:finish()
  if self._finished then return end
  self._finished = true
  local now = self._clock()
  self:_measure(now)
  if self._terminal or not self._shown or self._shown.done ~= self.done then self:_show(now) end
  if self._terminal then
    self._stream:write("\n")
    self._stream:flush()
  end
end

return Progress
