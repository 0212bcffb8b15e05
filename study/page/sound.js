// Sound: oscillators with an envelope. It starts on a click, and one thing plays at a time.
"use strict";

const CFSound = (() => {
  const ATTACK = 0.008;
  const RELEASE = 0.09;
  const PARTIALS = [["triangle", 1, 0.8], ["sine", 2, 0.22], ["sine", 3, 0.06]];
  let context = null;
  let current = null;

  const frequency = (pitch) => 440 * 2 ** ((pitch - 69) / 12);

  // Write the notes into an audio graph; times are in seconds from `start`.
  function schedule(audio, target, notes, tempo, start) {
    const beat = 60 / tempo;
    for (const { onset, duration, pitch } of notes) {
      const from = start + onset * beat;
      const until = from + Math.max(0.06, duration * beat * 0.96);
      const level = audio.createGain();
      level.gain.setValueAtTime(0, from);
      level.gain.linearRampToValueAtTime(0.32, from + ATTACK);
      level.gain.exponentialRampToValueAtTime(0.14, until);
      level.gain.exponentialRampToValueAtTime(0.0005, until + RELEASE);
      level.connect(target);
      for (const [type, times, share] of PARTIALS) {
        const tone = audio.createOscillator();
        const part = audio.createGain();
        tone.type = type;
        tone.frequency.value = frequency(pitch) * times;
        part.gain.value = share;
        tone.connect(part).connect(level);
        tone.start(from);
        tone.stop(until + RELEASE + 0.02);
      }
    }
  }

  // The same sound without a loudspeaker, as numbers in -1…1.
  async function render(notes, tempo, rate = 22050) {
    const end = Math.max(0, ...notes.map((note) => note.onset + note.duration));
    const seconds = (end * 60) / tempo + 0.3;
    const audio = new OfflineAudioContext(1, Math.ceil(seconds * rate), rate);
    schedule(audio, audio.destination, notes, tempo, 0);
    return (await audio.startRendering()).getChannelData(0);
  }

  function volume() {
    return Number(CFDom.find("volume").value);
  }

  function tempo() {
    return Number(CFDom.find("tempo").value);
  }

  // Play clips one after another: [{pair, name, rolls, mark}]. Resolves to whether all were heard.
  async function play(clips) {
    stop();
    context = context || new AudioContext();
    await context.resume();
    const mine = { stopped: false, gain: context.createGain() };
    mine.gain.gain.value = volume();
    mine.gain.connect(context.destination);
    current = mine;
    CFDom.find("stop").disabled = false;
    for (const clip of clips) {
      if (mine.stopped) break;
      await playOne(clip, mine);
    }
    const heard = !mine.stopped;
    if (current === mine) stop();
    return heard;
  }

  async function playOne(clip, mine) {
    const notes = CFData.join(clip.pair);
    const speed = tempo();
    const start = context.currentTime + 0.08;
    const seconds = (2 * clip.pair.length * 60) / speed;
    schedule(context, mine.gain, notes, speed, start);
    CFDom.find("playing").textContent = `Playing: ${clip.name}`;
    const marked = [clip.mark].flat().filter(Boolean);
    marked.forEach((element) => element.classList.add("sounding"));
    await new Promise((resolve) => {
      mine.end = resolve;
      const frame = () => {
        const at = context.currentTime - start;
        if (mine.stopped || at > seconds + 0.25) return resolve();
        for (const roll of clip.rolls || []) roll.follow(Math.max(0, (at * speed) / 60));
        return setTimeout(frame, 30);
      };
      frame();
    });
    for (const roll of clip.rolls || []) roll.follow(null);
    marked.forEach((element) => element.classList.remove("sounding"));
  }

  function stop() {
    if (current) {
      current.stopped = true;
      const gain = current.gain;
      gain.gain.setTargetAtTime(0, context.currentTime, 0.02);
      setTimeout(() => gain.disconnect(), 200);
      const end = current.end;
      current = null;
      if (end) end();
    }
    CFDom.find("stop").disabled = true;
    CFDom.find("playing").textContent = "Nothing plays.";
  }

  function start() {
    CFDom.find("stop").addEventListener("click", stop);
    CFDom.find("volume").addEventListener("input", () => {
      if (current) current.gain.gain.value = volume();
    });
  }

  return { start, play, stop, render, tempo };
})();
