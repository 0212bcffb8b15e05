/**
 * Melodies from and to standard MIDI files, without any library and without a page.
 *
 * Bytes count as hostile: whatever they are, the outcome is a melody or an Error that says what to
 * do. Notes are `{onset, duration, pitch}`, times in quarter notes, as those of `engine.js`.
 *
 * What is read follows cf_core/readers/midi.py, with chords thinned to their top notes as in
 * cf_core/piece.py. Simpler than there: bars are counted from the start, not from a pickup, and
 * every onset and end moves to the nearest step.
 */
globalThis.CFMidi = (() => {
  "use strict";

  const MOST_BYTES = 2 ** 20, MOST_NOTES = 20000, MOST_BARS = 10000, MOST_QUARTERS = 40000;
  const PERCUSSION = 9, VELOCITY = 90, QUARTER = 480; // ticks per quarter note of what is written
  const SAME = 1 / 96; // onsets that are no farther apart, in quarter notes, are those of a chord
  const MONOPHONIC = 0.4; // share of notes of a melody that start after the middle of the one before
  const OTHER_DATA = {0xA: 2, 0xB: 2, 0xC: 1, 0xD: 1, 0xE: 2}; // data bytes of other messages

  function fail(reason) {
    throw new Error(`this file can't be used: ${reason}; choose another MIDI file`);
  }

  // ---- reading ---------------------------------------------------------------------------------

  /**
   * The melody of a file: its first nearly monophonic track, or its first with notes.
   *
   * Returns `notes` by onset, of which no two sound together; `meters`, a list of `{onset, meter}`
   * that begins at 0; and `tempo` at the start, in quarter notes per minute.
   */
  function read(buffer) {
    const {quarter, tracks} = parse(new Uint8Array(buffer));
    const voices = tracks.flatMap((track) => [...track.voices.values()].map((notes) => ({notes, track})));
    if (!voices.length) fail("it has no notes");
    const {notes, track} = voices.find((voice) => isMelody(voice.notes)) ?? voices[0];
    if (notes.length > MOST_NOTES) fail(`it has more than ${MOST_NOTES} notes`);
    if (notes.some((note) => note.end > MOST_QUARTERS * quarter)) fail(`it is longer than ${MOST_QUARTERS} beats`);
    // Tracks may disagree; the bars follow the melody's own time signatures, or those of the first
    // track where it has the same and more.
    const inFirst = [...track.meters].every(([tick, meter]) => tracks[0].meters.get(tick) === meter);
    const own = !track.meters.size ? tracks : inFirst ? [tracks[0]] : [track];
    // What comes a few ticks after the start holds from there.
    const inTime = ([tick, value]) => [tick > SAME * quarter ? tick : 0, value];
    const meters = new Map([[0, "4/4"], ...own.flatMap((each) => [...each.meters].map(inTime))]);
    const tempo = tracks.map((each) => new Map([...each.tempos].map(inTime)).get(0)).find(Boolean);
    return {
      notes: thinOut(notes, quarter).map(({onset, end, pitch}) => (
        {onset: onset / quarter, duration: (end - onset) / quarter, pitch})),
      meters: [...meters].sort((one, other) => one[0] - other[0])
        .map(([tick, meter]) => ({onset: tick / quarter, meter})),
      tempo: tempo ? 6e7 / tempo : 120,
    };
  }

  /** Ticks per quarter note and the tracks of a file. */
  function parse(bytes) {
    if (bytes.length > MOST_BYTES) fail("it is larger than 1 MiB");
    if (bytes.length < 14 || word(bytes, 0) !== "MThd") fail("it is no MIDI file");
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    const kind = view.getUint16(8), count = view.getUint16(10), quarter = view.getInt16(12);
    if (quarter <= 0) fail("its time is not in quarter notes");
    const tracks = [];
    for (let at = 8 + view.getUint32(4); at + 8 <= bytes.length;) {
      const end = at + 8 + view.getUint32(at + 4);
      if (word(bytes, at) === "MTrk") {
        if (end > bytes.length) break;
        tracks.push(readTrack(bytes.subarray(at + 8, end)));
      }
      at = end;
    }
    if (kind === 2 && Math.max(count, tracks.length) > 1) fail("its tracks are separate pieces");
    if (tracks.length < count) fail("it is cut off");
    return {quarter, tracks};
  }

  const word = (bytes, at) => String.fromCharCode(...bytes.subarray(at, at + 4));

  /** Notes by channel (in `voices`, times in ticks), time signatures and tempos by tick. */
  function readTrack(bytes) {
    const track = {voices: new Map(), meters: new Map(), tempos: new Map()}, keys = new Map();
    let tick = 0, at = 0, status = 0;
    const take = () => (at < bytes.length ? bytes[at++] : fail("it is cut off"));
    const takeNumber = () => {
      let value = 0;
      for (let place = 0; place < 4; place++) {
        const byte = take();
        value = value * 128 + (byte & 127);
        if (byte < 128) return value;
      }
      return fail("it has a number of more than four bytes");
    };
    while (at < bytes.length) {
      tick += takeNumber();
      let first = take();
      if (first >= 0xF0) {
        if (first !== 0xFF && first !== 0xF0 && first !== 0xF7) fail("it has a message that files must not have");
        const kind = first === 0xFF ? take() : null;
        if (kind === 0x2F) break; // the end of the track, whatever its chunk holds beyond it
        const length = takeNumber();
        if (at + length > bytes.length) fail("it is cut off");
        keepMeta(track, kind, bytes.subarray(at, at + length), tick);
        at += length;
        continue;
      }
      if (first >= 0x80) {
        status = first;
        first = take();
      } else if (!status) fail("it has data before any message");
      const sort = status >> 4;
      if (sort > 9) {
        if (OTHER_DATA[sort] === 2) take();
        continue;
      }
      const struck = take(), key = ((status & 15) << 7) | Math.min(first, 127);
      if ((status & 15) === PERCUSSION) continue;
      if (!keys.has(key)) keys.set(key, []);
      keys.get(key).push([tick, sort === 9 && struck > 0]);
    }
    collect(keys, track.voices, tick);
    return track;
  }

  /** Keeps what a time signature or a tempo says. */
  function keepMeta(track, kind, content, tick) {
    if (kind === 0x51 && content.length >= 3) {
      const tempo = (content[0] << 16) | (content[1] << 8) | content[2];
      if (tempo) track.tempos.set(tick, tempo);
    }
    if (kind === 0x58) {
      if (!(content[0] > 0 && content[1] <= 6)) fail("it has a time signature that is none");
      track.meters.set(tick, `${content[0]}/${2 ** content[1]}`);
    }
  }

  function collect(keys, voices, end) {
    for (const [key, events] of keys) {
      const notes = pair(events, end).map(([from, to]) => ({onset: from, end: to, pitch: key & 127}));
      if (notes.length) voices.set(key >> 7, (voices.get(key >> 7) ?? []).concat(notes));
    }
    const sorted = [...voices].sort((one, other) => one[0] - other[0]);
    voices.clear();
    for (const [channel, notes] of sorted) {
      notes.sort((one, other) => one.onset - other.onset || one.end - other.end || one.pitch - other.pitch);
      voices.set(channel, notes);
    }
  }

  /**
   * Onset and end of each note of one key, from its strokes and releases.
   *
   * A stroke ends the note before it. A release belongs to the oldest note without one. Where a key
   * is struck more often than it is released, strokes take the place of the missing releases, and
   * tick `end`, where the track ends, that of the last one.
   */
  function pair(events, end) {
    const strokes = events.filter(([, struck]) => struck).length;
    const allReleased = 2 * strokes <= events.length, notes = [];
    const unreleased = [];
    let oldest = 0, sounding = null, anew = -1; // what is before `oldest` is released
    for (const [tick, struck] of events) {
      if (struck) {
        if (sounding !== null && sounding < tick) {
          notes.push([sounding, tick]);
          anew = tick;
        }
        if (!allReleased) oldest = unreleased.length;
        sounding = tick;
        unreleased.push(tick);
      } else if (oldest < unreleased.length && (allReleased || tick > anew)) {
        const onset = unreleased[oldest++];
        if (onset === sounding && unreleased[oldest] !== onset) {
          if (onset < tick) notes.push([onset, tick]);
          sounding = null;
        }
      }
    }
    if (sounding !== null && sounding < end) notes.push([sounding, end]);
    return notes;
  }

  function isMelody(notes) {
    const apart = notes.filter(({onset}, i) => i && 2 * onset > notes[i - 1].onset + notes[i - 1].end);
    return apart.length >= MONOPHONIC * (notes.length - 1);
  }

  /** Of notes that sound together the highest; times in ticks. */
  function thinOut(notes, quarter) {
    const line = [];
    for (const next of [...notes].sort((one, other) => one.onset - other.onset || other.pitch - one.pitch)) {
      const last = line[line.length - 1];
      if (last) {
        const overlap = last.end - next.onset;
        if (next.onset - last.onset <= SAME * quarter) continue;
        if (overlap > 0) {
          if (2 * overlap >= last.end - last.onset && next.pitch <= last.pitch) continue;
          last.end = next.onset;
        }
      }
      line.push({...next});
    }
    return line;
  }

  // ---- segments --------------------------------------------------------------------------------

  /**
   * Tokens of the first or the last whole segment that a model can take.
   *
   * `midi` is what `read` returns, `form` a model's format, `which` "first" or "last". A segment is
   * bars with notes, of one meter that the format has and within its pitches. A note that sounds over
   * its start is struck again there. Throws an Error where there is none.
   */
  function segment(midi, form, which) {
    const bars = listBars(midi), many = form.barsPerSegment;
    const starts = bars.slice(0, Math.max(0, bars.length - many + 1)).map((_, number) => number);
    if (which === "last") starts.reverse();
    for (const start of starts) {
      const chosen = bars.slice(start, start + many), kind = form.kindOfMeter[chosen[0].meter];
      if (kind === undefined) continue;
      if (!chosen.every((bar) => bar.whole && form.kindOfMeter[bar.meter] === kind)) continue;
      const tokens = quantise(midi.notes, chosen[0].onset, kind, form);
      if (tokens) return tokens;
    }
    return fail(`it has no ${many} neighbouring bars with notes that this model can take, which are in`
      + ` ${form.meters.join(", ")}, with MIDI pitches ${form.lowest} to ${form.highest}`);
  }

  /** Bars up to the last note, counted from each time signature on. */
  function listBars({notes, meters}) {
    const end = notes.reduce((most, {onset, duration}) => Math.max(most, onset + duration), 0), bars = [];
    meters.forEach(({onset, meter}, i) => {
      const [beats, unit] = meter.split("/"), length = 4 * beats / unit;
      const stop = i + 1 < meters.length ? Math.min(meters[i + 1].onset, end) : end;
      for (let number = 0; onset + number * length < stop - SAME; number++) {
        if (bars.length === MOST_BARS) fail(`it has more than ${MOST_BARS} bars`);
        const start = onset + number * length;
        const whole = i + 1 === meters.length || start + length <= meters[i + 1].onset + SAME;
        bars.push({onset: start, meter, whole});
      }
    });
    return bars;
  }

  /** Tokens of the segment that starts at a quarter note; null without notes or out of range. */
  function quantise(notes, start, kind, form) {
    const steps = form.lengths[kind], lines = [0];
    for (let step = 0; step < steps; step++) lines.push(lines[step] + form.stepLengths[kind][step]);
    const nearest = (time) => lines.reduce((best, line, step) => (
      Math.abs(line - time) < Math.abs(lines[best] - time) ? step : best), 0);
    const tokens = new Int16Array(form.steps).fill(-1 - kind).fill(0, 0, steps);
    let struck = false;
    for (const {onset, duration, pitch} of notes) {
      const ends = onset + duration - start;
      if (ends <= SAME || onset - start >= lines[steps] - SAME) continue;
      const first = nearest(onset - start), last = Math.max(nearest(ends), first + 1);
      if (first === steps || (onset < start - SAME && nearest(ends) === 0)) continue;
      if (pitch < form.lowest || pitch > form.highest) return null;
      tokens[first] = 2 + pitch - form.lowest;
      tokens.fill(1, first + 1, last);
      struck = true;
    }
    return struck ? tokens : null;
  }

  // ---- writing ---------------------------------------------------------------------------------

  /** A file of one track, at `tempo` quarter notes per minute, in one meter such as "6/8". */
  function write(notes, {tempo = 120, meter = "4/4"} = {}) {
    if (!(tempo >= 10 && tempo <= 500)) throw new Error("tempo: give 10 to 500 quarter notes per minute");
    const [beats, unit] = meter.split("/").map(Number), speed = Math.round(6e7 / tempo);
    const events = [
      [0, 0, [0xFF, 0x51, 3, speed >> 16, (speed >> 8) & 255, speed & 255]],
      [0, 0, [0xFF, 0x58, 4, beats, Math.log2(unit), 24, 8]],
    ];
    for (const {onset, duration, pitch} of notes) {
      const on = Math.round(onset * QUARTER), off = Math.round((onset + duration) * QUARTER);
      events.push([on, 2, [0x90, pitch, VELOCITY]], [Math.max(off, on + 1), 1, [0x80, pitch, 0]]);
    }
    events.sort((one, other) => one[0] - other[0] || one[1] - other[1]); // of one tick, ends first
    const body = [];
    let now = 0;
    for (const [tick, , message] of events) {
      body.push(...encode(tick - now), ...message);
      now = tick;
    }
    body.push(0, 0xFF, 0x2F, 0);
    const size = [24, 16, 8, 0].map((shift) => (body.length >> shift) & 255);
    const head = [...letters("MThd"), 0, 0, 0, 6, 0, 0, 0, 1, QUARTER >> 8, QUARTER & 255];
    return Uint8Array.from([...head, ...letters("MTrk"), ...size, ...body]);
  }

  const letters = (text) => [...text].map((letter) => letter.charCodeAt(0));

  /** A number in as many bytes as it needs. */
  function encode(number) {
    const bytes = [number % 128];
    for (let rest = Math.floor(number / 128); rest > 0; rest = Math.floor(rest / 128)) {
      bytes.unshift(128 + (rest % 128));
    }
    return bytes;
  }

  return {read, segment, write};
})();
if (typeof module === "object") module.exports = globalThis.CFMidi;
