// Hands the samples of the microphone to the page, a tenth of a second at a time.

class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Float32Array(Math.round(sampleRate / 10));
    this.filled = 0;
    this.port.onmessage = () => {
      this.port.postMessage({ samples: this.block.slice(0, this.filled), last: true });
      this.filled = 0;
      this.ended = true;
    };
  }

  process([input]) {
    if (this.ended) return false;
    for (const sample of input[0] ?? []) {
      this.block[this.filled++] = sample;
      if (this.filled === this.block.length) {
        this.port.postMessage({ samples: this.block.slice() });
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("recorder", Recorder);
