--- What the fault tests and their workers share: processes, signals, folders, and a save whose every element tells
-- its step.
local ffi = require "ffi"
local lfs = require "lfs"
local mc = require "mascon"
local monotime = require("system").monotime

ffi.cdef [[
int fork(void);
int execvp(const char *file, const char *const *argv);
void _exit(int status);
int kill(int pid, int signal);
int waitpid(int pid, int *status, int options);
int pipe2(int *fds, int flags);
int dup2(int from, int to);
int close(int fd);
long read(int fd, void *buffer, size_t n);
long write(int fd, const void *buffer, size_t n);
int usleep(unsigned microseconds);
int seteuid(unsigned id);
unsigned geteuid(void);
int poll(void *fds, unsigned long n, int timeout);
int chmod(const char *path, unsigned mode);
int mascon_test_setrlimit(int what, const uint64_t *limits) __asm__("setrlimit64");
]]
local C = ffi.C

local M = {}

M.KILL, M.TERM, M.INT = 9, 15, 2
local CLOEXEC = 524288 -- O_CLOEXEC of Linux, except on a few old machines
local RLIMIT_FSIZE = 1

-- ---------------------------------------------------------------- processes

local Process = {}
Process.__index = Process

--- Starts a program with a pipe to its standard input and one from its standard output.
-- @tparam {string,...} words the program and its arguments
function M.start(words)
  local to, from = ffi.new "int[2]", ffi.new "int[2]"
  assert(C.pipe2(to, CLOEXEC) == 0 and C.pipe2(from, CLOEXEC) == 0, "no pipe")
  local argv = ffi.new("const char *[?]", #words + 1)
  for i, word in ipairs(words) do argv[i - 1] = word end
  local pid = C.fork()
  assert(pid >= 0, "no process")
  if pid == 0 then
    C.dup2(to[0], 0)
    C.dup2(from[1], 1)
    C.execvp(words[1], argv)
    io.stderr:write(words[1], ": cannot run it: error ", ffi.errno(), "\n")
    C._exit(127)
  end
  C.close(to[0])
  C.close(from[1])
  return setmetatable({ pid = pid, to = to[1], from = from[0], rest = "" }, Process)
end

function Process:send(line)
  line = line .. "\n"
  assert(C.write(self.to, line, #line) == #line, "the process does not listen")
end

--- The next line of its standard output; nil at its end.
function Process:line()
  local buffer = ffi.new "char[4096]"
  while true do
    local line, rest = self.rest:match "^(.-)\n(.*)$"
    if line then
      self.rest = rest
      return line
    end
    local n = tonumber(C.read(self.from, buffer, 4096))
    if n <= 0 then return nil end
    self.rest = self.rest .. ffi.string(buffer, n)
  end
end

--- Whether it has closed its standard output, and has nothing more to say.
function Process:is_over()
  local fd = ffi.new("struct { int fd; short events, seen; }", self.from, 1, 0)
  return self.rest == "" and C.poll(fd, 1, 0) == 1 and fd.seen % 2 == 0
end

function Process:kill(signal) C.kill(self.pid, signal) end

--- Waits for its end. Its exit status, or nil and the signal that ended it; then all it wrote since.
function Process:wait()
  C.close(self.to)
  local lines = {}
  for line in function() return self:line() end do lines[#lines + 1] = line end
  C.close(self.from)
  local status, signal = M.wait(self.pid)
  return status, signal, table.concat(lines, "\n")
end

--- Exit status of a child, or nil and the signal that ended it.
function M.wait(pid)
  local status = ffi.new "int[1]"
  while C.waitpid(pid, status, 0) < 0 do
    assert(ffi.errno() == 4, "no such child") -- EINTR
  end
  local signal = status[0] % 128
  if signal ~= 0 then return nil, signal end
  return math.floor(status[0] / 256) % 256
end

--- Runs fn in a copy of this process; its number. The copy ends without any of its parent's own endings.
function M.fork(fn)
  io.stdout:flush()
  local pid = C.fork()
  assert(pid >= 0, "no process")
  if pid > 0 then return pid end
  local ok, err = xpcall(fn, debug.traceback)
  if not ok then io.stderr:write(tostring(err), "\n") end
  C._exit(ok and 0 or 1)
end

function M.kill(pid, signal) return C.kill(pid, signal) == 0 end

function M.sleep(seconds)
  local till = monotime() + seconds
  while monotime() < till do C.usleep(math.max(1, math.min((till - monotime()) * 1e6, 5e5))) end
end

M.now = monotime

--- A worker of this folder under scripts/mascon, which finds the build.
function M.worker(name, ...)
  return M.start { "scripts/mascon", "tests/faults/" .. name .. ".lua", ... }
end

--- Calls fn as somebody whom file modes stop.
function M.unprivileged(fn, ...)
  local root = C.geteuid() == 0
  if root then assert(C.seteuid(65534) == 0) end
  local result = { pcall(fn, ...) }
  if root then assert(C.seteuid(0) == 0) end
  return unpack(result, 1, 4)
end

function M.chmod(path, mode) assert(C.chmod(path, mode) == 0, path) end

--- The largest file this process may write; nil: any.
function M.limit_file_size(bytes)
  local any = 0xffffffffffffffffULL
  local limits = ffi.new("uint64_t[2]", { bytes or any, any })
  assert(C.mascon_test_setrlimit(RLIMIT_FSIZE, limits) == 0, "no limit")
end

-- ---------------------------------------------------------------- folders

function M.new_folder()
  local folder = os.tmpname()
  os.remove(folder)
  assert(lfs.mkdir(folder))
  return folder
end

function M.remove_folder(folder) os.execute(("rm -rf '%s'"):format(folder)) end

--- Names in a folder, sorted, as one text; those in `but` left out.
function M.names(folder, but)
  local list, out = {}, {}
  for name in (but or ""):gmatch "%S+" do out[name] = true end
  for name in lfs.dir(folder) do
    if name ~= "." and name ~= ".." and not out[name] then list[#list + 1] = name end
  end
  table.sort(list)
  return table.concat(list, " ")
end

function M.slurp(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read "*a"
  file:close()
  return text
end

function M.spill(path, text)
  local file = assert(io.open(path, "wb"))
  assert(file:write(text))
  assert(file:close())
end

-- ---------------------------------------------------------------- a save that tells its step

local ROWS, COLUMNS, EXPERTS = 500, 512, 4 -- 1 MB each
M.BYTES = 2 * ROWS * COLUMNS * 4 -- of the tensors of one save, nearly

--- The object of a step: nested, with a grouped layer's parts, a text, and every element = step.
function M.object(step)
  local layer = mc.nn.GroupedLinear { num_gemms = EXPERTS, in_features = 8, out_features = 6,
    init_method = function(t) t:fill_(step) end }
  mc.no_grad(function() layer:expert(0).bias:copy_(mc.full({ 6 }, step)) end)
  return {
    model = { a = mc.full({ ROWS, COLUMNS }, step), experts = layer:state_dict() },
    b = mc.full({ ROWS, COLUMNS }, step), step = step, text = ("%d "):format(step):rep(500),
  }
end

local function all_are(t, value)
  return t:min():item() == value and t:max():item() == value
end

--- The step that a whole, verified file was saved at; nil and why when it is no such file.
function M.step_of(path)
  local ok, report = pcall(mc.checkpoint.verify, path)
  if not ok then return nil, report end
  if not report.ok then return nil, tostring(report) end
  local object
  ok, object = pcall(mc.load, path)
  if not ok then return nil, object end
  local step = object.step
  for _, t in ipairs { object.model.a, object.b } do
    if not all_are(t, step) then return nil, path .. ": elements of another step" end
  end
  local experts, found = object.model.experts, 0
  for _, name in ipairs { "weight", "weight0", "weight3" } do
    if experts[name] then
      found = found + 1
      if not all_are(experts[name], step) then return nil, path .. ": an expert of another step" end
    end
  end
  if found == 0 then return nil, path .. ": no experts" end
  if object.text ~= ("%d "):format(step):rep(500) then return nil, path .. ": a text of another step" end
  return step
end

return M
