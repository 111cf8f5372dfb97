--- What the system knows about files and disks: which file a path is, and how much room there is. Linux, 64 bits.
local ffi = require "ffi"

local C = ffi.C

-- linux/stat.h, the same on every architecture; statvfs begins with five words on all 64-bit ones.
ffi.cdef [[
typedef struct { int64_t sec; uint32_t nsec; int32_t pad; } mascon_statx_time;
typedef struct {
  uint32_t mask, blksize; uint64_t attributes; uint32_t nlink, uid, gid; uint16_t mode, pad;
  uint64_t ino, size, blocks, attributes_mask; mascon_statx_time atime, btime, ctime, mtime;
  uint32_t rdev_major, rdev_minor, dev_major, dev_minor; uint64_t spare[14];
} mascon_statx;
int statx(int dirfd, const char *path, int flags, unsigned mask, mascon_statx *out);
int statvfs(const char *path, uint64_t *out);
]]

local AT_FDCWD, BASIC_STATS = -100, 0x7ff

local M = {}

local function look(path)
  local out = ffi.new "mascon_statx"
  if C.statx(AT_FDCWD, path, 0, BASIC_STATS, out) ~= 0 then return nil end
  return out
end

--- Whether there is something at a path; a link is what it points at.
function M.exists(path) return look(path) ~= nil end

--- Whether two paths are one file, by whatever names and links.
function M.same_file(a, b)
  local x, y = look(a), look(b)
  return x ~= nil and y ~= nil and x.ino == y.ino and x.dev_major == y.dev_major and x.dev_minor == y.dev_minor
end

--- A text that changes when the file at a path is another one or was written to.
function M.identity(path)
  local out = look(path)
  if not out then return "none" end
  return ("%d:%d:%s:%s:%s.%09d"):format(out.dev_major, out.dev_minor, tostring(out.ino), tostring(out.size),
    tostring(out.mtime.sec), out.mtime.nsec)
end

--- Bytes that may still be written into a folder's file system; nil where it cannot tell.
function M.free(folder)
  local out = ffi.new "uint64_t[64]" -- bsize, frsize, blocks, free, available
  if C.statvfs(folder, out) ~= 0 then return nil end
  return tonumber(out[1]) * tonumber(out[4])
end

--- The folder that a path's file is in.
function M.folder(path)
  local folder = path:match "^(.*)/"
  if folder == nil then return "." end
  return folder == "" and "/" or folder
end

return M
