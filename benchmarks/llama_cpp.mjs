// Tokens per second of llama.cpp, as node-llama-cpp packages it; a helper of benchmarks/generation.py.
//   node llama_cpp.mjs FILE THREADS PROMPT NEW BATCH   token ids of BATCH prompts on stdin, as JSON
// Prints {"prefill": seconds, "decode": seconds, "tokens": ids per prompt} for one generation per line of stdin.
import {createInterface} from "node:readline";
import {getLlama} from "node-llama-cpp";

const [file, threads, prompt, count, batch] = process.argv.slice(2).map((each, i) => (i ? Number(each) : each));
const llama = await getLlama({gpu: false, build: "never", progressLogs: false, logLevel: "error"});
const model = await llama.loadModel({modelPath: file});
const context = await model.createContext({contextSize: prompt + count + 8, sequences: batch, threads, batchSize: 512});

async function generate(sequence, ids, stamps) {
    const tokens = [];
    for await (const token of sequence.evaluate(ids, {temperature: 0, yieldEogToken: true})) {
        stamps.push(performance.now());
        tokens.push(token);
        if (tokens.length === count) break;
    }
    return tokens;
}

for await (const line of createInterface({input: process.stdin})) {
    const prompts = JSON.parse(line);
    const sequences = prompts.map(() => context.getSequence());
    const stamps = prompts.map(() => []);
    const started = performance.now();
    const tokens = await Promise.all(prompts.map((ids, i) => generate(sequences[i], ids, stamps[i])));
    const first = Math.max(...stamps.map((each) => each[0]));
    const last = Math.max(...stamps.map((each) => each.at(-1)));
    console.log(JSON.stringify({prefill: (first - started) / 1000, decode: (last - first) / 1000, tokens}));
    for (const sequence of sequences) sequence.dispose();
    await new Promise((resolve) => setTimeout(resolve, 50));
}
process.exit(0);
