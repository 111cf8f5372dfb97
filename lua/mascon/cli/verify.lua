-- mascon verify: reads every byte of a checkpoint and compares it with the digests written at the save,
-- and what the file says of its layers with their tensors.

local files = require("mascon.cli.files")
local words = require("mascon.checkpoint.words")
local help = require("mascon.cli.help")

local M = {summary = "Check a checkpoint's bytes against its digests, its views, and its layers' facts."}

local ORDER = {"path", "ok", "checked", "damaged", "facts", "unverified", "duplicates", "name", "message", "experts"}

function M.options(command)
  command:argument("file", "A checkpoint.")
  command:flag("--json", "The report as one JSON object.")
  help.example(command, "mascon verify runs/kjv/ckpt/step_0001000.h5",
    "Exit status: 0 all is as it was written, 1 damage, a broken view, or a layer\n"
    .. "that is not as the file says, such as one without an expert, 2 a usage error, 3 not readable, 4 I/O.")
end

-- What is suspicious, on standard error: it changes no status.
local function warn(report)
  if #report.unverified > 0 then
    io.stderr:write(("mascon verify: warning: %s without a digest, such as %s\n"):format(
      words.plural(#report.unverified, "dataset"), report.unverified[1]))
  end
  local ranges = require("mascon.checkpoint.plan_names").ranges
  for _, found in ipairs(report.duplicates) do
    io.stderr:write(("mascon verify: warning: %s: experts %s hold the same values\n"):format(found.name,
      ranges(found.experts)))
  end
end

--- @treturn int 0 when bytes and layers are as the file says, 1 when not, 3 and 4 as everywhere
function M.run(options)
  local update, finish = files.progress()
  local report, status = files.attempt("verify", function()
    return require("mascon").checkpoint.verify(options.file, {progress = update})
  end)
  finish()
  if not report then return status end
  status = report.ok and files.DONE or files.NO
  warn(report)
  if options.json then return files.answer("verify", files.json(report, ORDER), status) end
  return files.answer("verify", require("mascon.checkpoint.describe").verified(report), status)
end

return M
