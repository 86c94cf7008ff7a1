// Sound without a page: WAV files, resampling, the microphone, and gapless playing of a stream.

export const SPEECH_RATE = 16000; // samples a second that the model hears

export function toBase64(bytes) {
  let binary = "";
  for (let at = 0; at < bytes.length; at += 32768) binary += String.fromCharCode(...bytes.subarray(at, at + 32768));
  return btoa(binary);
}

export function fromBase64(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

/** A mono 16-bit WAV file: Float32Array (-1..1) or Int16Array [n] -> Uint8Array. */
export function encodeWav(samples, rate) {
  const bytes = new Uint8Array(44 + 2 * samples.length);
  const view = new DataView(bytes.buffer);
  const word = (at, text) => [...text].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  word(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  word(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // length of the format block
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // channels
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true); // bytes a second
  view.setUint16(32, 2, true); // bytes a sample
  view.setUint16(34, 16, true); // bits a sample
  word(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  const floats = samples instanceof Float32Array;
  samples.forEach((sample, i) => {
    view.setInt16(44 + 2 * i, floats ? Math.round(32767 * Math.max(-1, Math.min(1, sample))) : sample, true);
  });
  return bytes;
}

/** Any sound file that the browser can read, as mono samples at the rate of speech. */
export async function decodeSound(buffer) {
  // A context at the wanted rate resamples while decoding.
  const decoded = await new OfflineAudioContext(1, 1, SPEECH_RATE).decodeAudioData(buffer);
  const mono = new Float32Array(decoded.length);
  for (let channel = 0; channel < decoded.numberOfChannels; channel++) {
    decoded.getChannelData(channel).forEach((sample, i) => (mono[i] += sample / decoded.numberOfChannels));
  }
  return mono;
}

/** Samples at the rate of speech, from samples at another rate. */
export async function resample(samples, rate) {
  if (rate === SPEECH_RATE || !samples.length) return samples;
  const context = new OfflineAudioContext(1, Math.ceil((samples.length * SPEECH_RATE) / rate), SPEECH_RATE);
  const buffer = context.createBuffer(1, samples.length, rate);
  buffer.copyToChannel(samples, 0);
  const source = new AudioBufferSourceNode(context, { buffer });
  source.connect(context.destination);
  source.start();
  return (await context.startRendering()).getChannelData(0);
}

/** Opens the microphone. `onBlock(samples)` gets a tenth of a second at a time, at `rate`; `close()` gives it back. */
export async function microphone(onBlock) {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Error("The browser opens the microphone only on https:// pages or on localhost.");
  }
  const stream = await navigator.mediaDevices.getUserMedia({
    audio: { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true },
  });
  const context = new AudioContext();
  const stopTracks = () => stream.getTracks().forEach((track) => track.stop());
  try {
    await context.audioWorklet.addModule(new URL("recorder-worklet.js", import.meta.url));
  } catch (error) {
    stopTracks();
    context.close();
    throw error;
  }
  const source = context.createMediaStreamSource(stream);
  const recorder = new AudioWorkletNode(context, "recorder", { numberOfOutputs: 0 });
  let ended;
  const end = new Promise((resolve) => (ended = resolve));
  recorder.port.onmessage = ({ data }) => {
    onBlock(data.samples);
    if (data.last) ended();
  };
  source.connect(recorder);
  await context.resume();
  return {
    rate: context.sampleRate,
    async close() {
      recorder.port.postMessage("end");
      await Promise.race([end, new Promise((resolve) => setTimeout(resolve, 300))]);
      stopTracks();
      await context.close();
    },
  };
}

/** Records until `finish()`, which resolves to a 16 kHz mono WAV file of at most `longest` seconds, and its length. */
export async function record(onLevel, longest) {
  const blocks = [];
  const open = await microphone((samples) => {
    blocks.push(samples);
    if (samples.length) onLevel(Math.sqrt(samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length));
  });
  return {
    cancel: () => open.close(),
    async finish() {
      await open.close();
      const samples = new Float32Array(blocks.reduce((sum, block) => sum + block.length, 0));
      let at = 0;
      for (const block of blocks) {
        samples.set(block, at);
        at += block.length;
      }
      const speech = (await resample(samples, open.rate)).subarray(0, longest * SPEECH_RATE);
      return { wav: encodeWav(speech, SPEECH_RATE), seconds: speech.length / SPEECH_RATE };
    },
  };
}

/** Plays 16-bit samples as they arrive, one piece seamlessly after the other; `stop()` falls silent at once. */
export class Speaker {
  constructor() {
    this.context = new AudioContext();
    this.analyser = new AnalyserNode(this.context, { fftSize: 512 });
    this.analyser.connect(this.context.destination);
    this.end = 0;
    this.sources = new Set();
  }

  push(pcm, rate) {
    const buffer = this.context.createBuffer(1, pcm.length, rate);
    const samples = buffer.getChannelData(0);
    pcm.forEach((sample, i) => (samples[i] = sample / 32768));
    const source = new AudioBufferSourceNode(this.context, { buffer });
    source.connect(this.analyser);
    // A small lead keeps the first pieces together when they arrive unevenly.
    this.end = Math.max(this.end, this.context.currentTime + 0.06);
    source.start(this.end);
    this.end += buffer.duration;
    this.sources.add(source);
    source.onended = () => this.sources.delete(source);
  }

  /** Seconds that are still to be heard. */
  get remaining() {
    return Math.max(0, this.end - this.context.currentTime);
  }

  stop() {
    for (const source of this.sources) source.stop();
    this.close();
  }

  close() {
    if (this.context.state !== "closed") this.context.close();
  }
}

/** Loudness of a 16-bit WAV file in `count` equal stretches, 0..1, for a drawing of it; and its length in seconds. */
export function outline(wav, count) {
  const { samples, rate } = wavSamples(wav);
  const peaks = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    const stretch = samples.subarray((i * samples.length) / count, ((i + 1) * samples.length) / count);
    let sum = 0;
    for (const sample of stretch) sum += sample * sample;
    peaks[i] = Math.sqrt(sum / Math.max(1, stretch.length)) / 32768;
  }
  const top = Math.max(0.02, ...peaks);
  return { peaks: peaks.map((peak) => peak / top), seconds: samples.length / rate };
}

function wavSamples(wav) {
  const view = new DataView(wav.buffer, wav.byteOffset, wav.byteLength);
  let rate = SPEECH_RATE;
  for (let at = 12; at + 8 <= wav.length; ) {
    const name = String.fromCharCode(...wav.subarray(at, at + 4));
    // A server that streams a WAV file does not know its length and may write a huge one.
    const size = Math.min(view.getUint32(at + 4, true), wav.length - at - 8);
    if (name === "fmt ") rate = view.getUint32(at + 12, true);
    if (name === "data") return { samples: new Int16Array(wav.slice(at + 8, at + 8 + (size & ~1)).buffer), rate };
    at += 8 + size + (size & 1);
  }
  return { samples: new Int16Array(0), rate };
}
