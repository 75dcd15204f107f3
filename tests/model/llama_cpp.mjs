// llama.cpp as an oracle for exported files, as node-llama-cpp packages it.
//   node llama_cpp.mjs FILE CONTEXT   one JSON request per line of stdin, one JSON answer per line of stdout
// {"tokenize": [text, …]} -> ids of each; {"greedy": [ids, …], "count": n} -> n tokens after each prompt;
// {"score": [ids, …]} -> nats of all tokens after the first of each.
import {createInterface} from "node:readline";
import {getLlama} from "node-llama-cpp";

const [file, size] = process.argv.slice(2);
const llama = await getLlama({gpu: false, build: "never", progressLogs: false, logLevel: "error"});
const model = await llama.loadModel({modelPath: file});
const context = await model.createContext({
    contextSize: Number(size), sequences: 1, threads: 1, batchSize: 512,
    flashAttention: false, experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32",  // defaults round to F16
});
const sequence = context.getSequence();

async function greedy(ids, count) {
    await sequence.clearHistory();
    const tokens = [];
    for await (const token of sequence.evaluate(ids, {temperature: 0, yieldEogToken: true})) {
        tokens.push(token);
        if (tokens.length === count) break;
    }
    return tokens;
}

async function score(ids) {
    await sequence.clearHistory();
    const inputs = ids.slice(0, -1).map((id) => [id, {generateNext: {logits: true}}]);
    const found = await sequence.controlledEvaluate(inputs);
    return found.reduce((sum, {next}, i) => {
        const logits = [...next.logits.values()];
        const most = logits.reduce((a, b) => Math.max(a, b));
        const total = logits.reduce((all, logit) => all + Math.exp(logit - most), 0);
        return sum + most + Math.log(total) - next.logits.get(ids[i + 1]);
    }, 0);
}

async function each(items, work) {
    const found = [];
    for (const item of items) found.push(await work(item));
    return found;
}

for await (const line of createInterface({input: process.stdin})) {
    const request = JSON.parse(line);
    let answer;
    if (request.tokenize) answer = request.tokenize.map((text) => [...model.tokenize(text)]);
    else if (request.greedy) answer = await each(request.greedy, (ids) => greedy(ids, request.count));
    else answer = await each(request.score, score);
    await new Promise((written) => process.stdout.write(JSON.stringify(answer) + "\n", written));
}
process.exit(0);
