-- Fuses two selected MIDI items in REAPER: the end of the earlier one with the beginning of the
-- later one. The whole tune appears on a new track, where the earlier item begins.
--
-- Start a server first (cf-study serve), load this file in REAPER's list of actions, select two
-- items of one voice each that begin on bar lines, and run it. REAPER can't speak HTTP, so curl
-- does; Windows, macOS and most Linux systems have it.

local URL = "http://127.0.0.1:8000/fuse"
local TICKS = 960 -- per quarter note

local function variable(number)
  local text = string.char(number & 0x7f)
  while number > 0x7f do
    number = number >> 7
    text = string.char(number & 0x7f | 0x80) .. text
  end
  return text
end

-- A MIDI file of one track. Notes have `on` and `off` in ticks, `pitch` and `velocity`.
local function make_smf(notes, beats, unit, tempo)
  local events = {}
  for _, note in ipairs(notes) do
    events[#events + 1] = {note.on, 1, string.char(0x90, note.pitch, note.velocity)}
    events[#events + 1] = {note.off, 0, string.char(0x80, note.pitch, 0)}
  end
  -- At one tick notes end before others begin.
  table.sort(events, function(a, b)
    for place = 1, 3 do
      if a[place] ~= b[place] then return a[place] < b[place] end
    end
    return false
  end)
  local power = 0
  while 1 << power < unit do power = power + 1 end
  local microseconds = math.floor(60000000 / tempo + 0.5)
  local track = {"\0\xff\x58\x04", string.char(beats, power, 24, 8),
                 "\0\xff\x51\x03", string.pack(">I3", microseconds)}
  local now = 0
  for _, event in ipairs(events) do
    track[#track + 1] = variable(event[1] - now) .. event[3]
    now = event[1]
  end
  track[#track + 1] = "\0\xff\x2f\0"
  return "MThd" .. string.pack(">I4I2I2I2", 6, 0, 1, TICKS)
    .. "MTrk" .. string.pack(">s4", table.concat(track))
end

if not reaper then return {make_smf = make_smf} end -- loaded by something else than REAPER

local function write(path, content)
  local file = assert(io.open(path, "wb"))
  file:write(content)
  file:close()
end

local function read(path)
  local file = io.open(path, "rb")
  local content = file and file:read("a") or ""
  if file then file:close() end
  return content
end

-- The notes that begin inside an item, in ticks from its start, as a MIDI file.
local function item_to_smf(item)
  local take = reaper.GetActiveTake(item)
  if not take or not reaper.TakeIsMIDI(take) then error("select MIDI items", 0) end
  local start = reaper.GetMediaItemInfo_Value(item, "D_POSITION")
  local finish = start + reaper.GetMediaItemInfo_Value(item, "D_LENGTH")
  local first, last = reaper.TimeMap2_timeToQN(0, start), reaper.TimeMap2_timeToQN(0, finish)
  local function ticks(position)
    local quarters = math.min(reaper.MIDI_GetProjQNFromPPQPos(take, position), last)
    return math.floor((quarters - first) * TICKS + 0.5)
  end
  local notes = {}
  local _, count = reaper.MIDI_CountEvts(take)
  for number = 0, count - 1 do
    local _, _, muted, on, off, _, pitch, velocity = reaper.MIDI_GetNote(take, number)
    local note = {on = ticks(on), off = ticks(off), pitch = pitch, velocity = velocity}
    if not muted and note.on >= 0 and note.off > note.on then notes[#notes + 1] = note end
  end
  local beats, unit, tempo = reaper.TimeMap_GetTimeSigAtTime(0, start)
  return make_smf(notes, beats, unit, tempo), start
end

local function fuse()
  if reaper.CountSelectedMediaItems(0) ~= 2 then error("select two MIDI items", 0) end
  local first, second = reaper.GetSelectedMediaItem(0, 0), reaper.GetSelectedMediaItem(0, 1)
  local left, start = item_to_smf(first)
  local right, other = item_to_smf(second)
  if other < start then left, right, start = right, left, other end
  local given, answer = reaper.GetUserInputs("Fuse", 2, "Grid steps to edit,Seed", "12,0")
  if not given then return end
  local edits, seed = answer:match("^%s*(%d+)%s*,%s*(%d+)%s*$")
  if not edits then error("give two whole numbers", 0) end
  local folder = reaper.GetResourcePath() .. "/"
  local output = folder .. os.date("fused-%Y%m%d-%H%M%S.mid")
  write(folder .. "fuse-left.mid", left)
  write(folder .. "fuse-right.mid", right)
  local curl = reaper.GetOS():match("^Win") and "curl.exe" or "/usr/bin/curl"
  local told = reaper.ExecProcess(string.format(
    '%s -sS -o "%s" -w "%%{http_code}" -F "left=@%sfuse-left.mid" -F "right=@%sfuse-right.mid"'
      .. ' -F edits=%s -F seed=%s %s', curl, output, folder, folder, edits, seed, URL), 60000)
  if not told or not told:match("200%s*$") then
    local detail = read(output):match('"detail":"(.*)"}') or told or "curl did not end"
    os.remove(output)
    error(detail .. "\n\nIs cf-study serve running at " .. URL .. "?", 0)
  end
  reaper.SetEditCurPos(start, false, false)
  reaper.InsertMedia(output, 1) -- on a new track
end

local done, message = pcall(fuse)
if not done then reaper.ShowMessageBox(tostring(message), "Fuse", 0) end
