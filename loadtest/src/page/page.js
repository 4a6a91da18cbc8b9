"use strict";
const shown = JSON.parse(document.getElementById("data").textContent);
const run = shown.figures, ticks = run.ticks, page = document.getElementById("page");
const statuses = run.asked.statuses;

// ---- words and numbers
const text = (value) => String(value).replace(/[&<>"]/g, (c) => "&#" + c.charCodeAt(0) + ";");
const count = (n) => Math.round(n).toLocaleString("en-US");
const trim = (n, digits) => Number(n.toPrecision(digits)).toLocaleString("en-US", { maximumFractionDigits: 3 });
const time = (us) => us == null ? "–" : us >= 1e6 ? trim(us / 1e6, 3) + " s" : us >= 1000 ? trim(us / 1000, 3) + " ms" : count(us) + " µs";
const bytes = (n) => n >= 2 ** 30 ? trim(n / 2 ** 30, 3) + " GiB" : trim(n / 2 ** 20, 3) + " MiB";
const short = (n) => n >= 1e6 ? trim(n / 1e6, 2) + " M" : n >= 1e4 ? trim(n / 1000, 3) + " k" : n >= 100 || n === 0 ? count(n) : trim(n, 2);
const sum = (values) => values.reduce((a, b) => a + b, 0);
const rate = (tick, name) => tick[name] / Math.max(tick.span, 1e-6);
const seconds = Math.max(run.elapsed / 1e6, 1e-6);

function section(width, title, body, note) {
  return `<section class="w${width}"><h2>${text(title)}</h2>${note ? `<p class="soft small">${note}</p>` : ""}${body}</section>`;
}
function table(head, rows) {
  const cell = (tag, value, index) => `<${tag}${index ? ' class="n"' : ""}>${value}</${tag}>`;
  const line = (tag, row) => "<tr>" + row.map((value, index) => cell(tag, value, index)).join("") + "</tr>";
  return `<table>${head ? line("th", head) : ""}${rows.map((row) => line("td", row)).join("")}</table>`;
}
const pairs = (rows) => table(null, rows.map(([name, value]) => [text(name), value]));

// ---- charts
const WIDE = 560, HIGH = 190, LEFT = 46, RIGHT = 8, TOP = 8, BOTTOM = 22;
function steps(max) {
  const raw = Math.max(max, 1e-9) / 4, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((f) => f * power).find((s) => s >= raw);
  return Array.from({ length: Math.ceil(max / step - 1e-9) + 1 }, (_, i) => i * step);
}
function frame(wide, high, end, yMarks, yAt, words) {
  const x = (at) => LEFT + at / end * (wide - LEFT - RIGHT);
  let out = "";
  for (const mark of yMarks) {
    out += `<line class="axis" x1="${LEFT}" x2="${wide - RIGHT}" y1="${yAt(mark)}" y2="${yAt(mark)}"/>`;
    out += `<text x="${LEFT - 6}" y="${yAt(mark) + 4}" text-anchor="end">${words(mark)}</text>`;
  }
  for (const mark of steps(end).filter((m) => m <= end * 1.001)) {
    out += `<text x="${x(mark)}" y="${high - 5}" text-anchor="middle">${trim(mark, 3)} s</text>`;
  }
  if (end * 1e6 > run.elapsed * 1.02) {
    const at = x(run.elapsed / 1e6);
    out += `<line x1="${at}" x2="${at}" y1="${TOP}" y2="${high - BOTTOM}" stroke="var(--soft)" stroke-dasharray="3 3"/>`;
    const isLate = at > wide * 0.8;
    out += `<text x="${at + (isLate ? -4 : 4)}" y="${TOP + 10}"${isLate ? ' text-anchor="end"' : ""}>load ends</text>`;
  }
  return [out, x];
}
function lines(series, words, options = {}) {
  const wide = options.wide || WIDE, high = options.high || HIGH, used = options.ticks || ticks;
  if (!used.length) return '<p class="soft">no samples</p>';
  const end = used[used.length - 1].at, values = series.flatMap((s) => used.map(s.of)).filter((v) => v != null && v > 0);
  const inner = high - TOP - BOTTOM;
  let yMarks, yAt;
  if (options.log && values.length) {
    const low = Math.floor(Math.log10(Math.min(...values))), top = Math.max(Math.ceil(Math.log10(Math.max(...values))), low + 1);
    yMarks = Array.from({ length: top - low + 1 }, (_, i) => 10 ** (low + i));
    yAt = (v) => TOP + inner * (1 - (Math.log10(Math.max(v, 10 ** low)) - low) / (top - low));
  } else {
    yMarks = steps(Math.max(...values, options.least || 1));
    const top = yMarks[yMarks.length - 1];
    yAt = (v) => TOP + inner * (1 - v / top);
  }
  let [out, x] = frame(wide, high, end, yMarks, yAt, words);
  for (const one of series) {
    let path = "", pen = "M";
    for (const tick of used) {
      const value = one.of(tick);
      if (value == null || (options.log && value <= 0)) { pen = "M"; continue; }
      path += pen + x(tick.at - tick.span / 2).toFixed(1) + " " + yAt(value).toFixed(1);
      pen = "L";
    }
    out += `<path d="${path}" fill="none" stroke="var(--${one.color})" stroke-width="1.8" stroke-linejoin="round"${one.dash ? ' stroke-dasharray="5 4"' : ""}/>`;
  }
  const key = series.map((s) => `<span><i style="background:var(--${s.color})"></i>${text(s.name)}</span>`).join("");
  return `<div class="key">${key}</div><svg viewBox="0 0 ${wide} ${high}" role="img">${out}</svg>`;
}
function heat() {
  const bounds = run.heat_us, wide = 1150, row = 15;
  const used = ticks.filter((t) => t.acked > 0);
  if (!used.length) return '<p class="soft">no 200</p>';
  const isUsed = bounds.map((_, r) => used.some((t) => t.heat[r] > 0)).concat(used.some((t) => t.heat[bounds.length] > 0));
  const first = Math.max(isUsed.indexOf(true) - 1, 0), last = Math.min(isUsed.lastIndexOf(true) + 1, bounds.length);
  const high = TOP + (last - first + 1) * row + BOTTOM, end = ticks[ticks.length - 1].at;
  const yOf = (r) => TOP + (last - r) * row;
  const [axis, x] = frame(wide, high, end, [], (v) => v, short);
  let out = "";
  for (let r = first; r <= last; r++) {
    const label = r < bounds.length ? "≤ " + time(bounds[r]) : "more";
    out += `<text x="${LEFT - 4}" y="${yOf(r) + row - 4}" text-anchor="end">${label}</text>`;
  }
  for (const tick of used) {
    const from = x(Math.max(tick.at - tick.span, 0)), to = x(tick.at);
    for (let r = first; r <= last; r++) {
      if (!tick.heat[r]) continue;
      const share = tick.heat[r] / tick.acked, shade = 0.12 + 0.88 * Math.min(1, Math.max(0, 1 + Math.log10(share) / 5));
      const told = `${trim(tick.at, 3)} s, ${r < bounds.length ? "up to " + time(bounds[r]) : "more than " + time(bounds[bounds.length - 1])}: ${count(tick.heat[r])} of ${count(tick.acked)}`;
      out += `<rect x="${from.toFixed(1)}" y="${yOf(r)}" width="${Math.max(to - from, 1).toFixed(1)}" height="${row - 1}" fill="rgba(var(--heat),${shade.toFixed(2)})"><title>${told}</title></rect>`;
    }
  }
  return `<svg viewBox="0 0 ${wide} ${high}" role="img">${out}${axis}</svg>`;
}
function bars(rows) {
  const most = Math.max(...rows.map((r) => r[1]), 1);
  const bar = ([name, value, color, note]) => `<tr><td style="width:38%">${text(name)}</td><td class="n" style="width:14%">${count(value)}</td>
    <td><div style="background:var(--${color});height:14px;border-radius:3px;width:${(100 * value / most).toFixed(1)}%;min-width:1px"></div><span class="small soft">${note || ""}</span></td></tr>`;
  return `<table>${rows.map(bar).join("")}</table>`;
}
function dots() {
  const shares = [...run.shares].sort((a, b) => a.p99 - b.p99), wide = WIDE, high = HIGH, inner = high - TOP - BOTTOM;
  const most = Math.max(...shares.map((s) => s.p99)), marks = steps(most / 1000), top = marks[marks.length - 1] * 1000;
  const y = (us) => TOP + inner * (1 - us / top), x = (i) => LEFT + 6 + i / Math.max(shares.length - 1, 1) * (wide - LEFT - RIGHT - 12);
  let out = "";
  for (const mark of marks) {
    out += `<line class="axis" x1="${LEFT}" x2="${wide - RIGHT}" y1="${y(mark * 1000)}" y2="${y(mark * 1000)}"/><text x="${LEFT - 6}" y="${y(mark * 1000) + 4}" text-anchor="end">${time(mark * 1000)}</text>`;
  }
  shares.forEach((s, i) => {
    const told = `business ${s.business}: ${count(s.count)}, p50 ${time(s.p50)}, p99 ${time(s.p99)}`;
    const size = shares.length > 100 ? 1.6 : 3.2;
    out += `<circle cx="${x(i).toFixed(1)}" cy="${y(s.p50).toFixed(1)}" r="${size}" fill="var(--a)"><title>${told}</title></circle><circle cx="${x(i).toFixed(1)}" cy="${y(s.p99).toFixed(1)}" r="${size}" fill="var(--b)"><title>${told}</title></circle>`;
  });
  out += `<text x="${LEFT}" y="${high - 4}">businesses, by their p99</text>`;
  return `<div class="key"><span><i style="background:var(--a)"></i>p50</span><span><i style="background:var(--b)"></i>p99</span></div><svg viewBox="0 0 ${wide} ${high}" role="img">${out}</svg>`;
}

// ---- the page
const red = shown.lines.filter((l) => l.red), tally = run.tally, messages = tally.acknowledged;
function verdict() {
  const good = !red.length;
  const title = run.interrupted ? "Interrupted: partial figures" : good ? "All as it should be" : "Red: " + [...new Set(red.map((l) => l.name))].join(", ");
  const wrong = tally.wrong, order = wrong.out_of_order ? `${count(wrong.out_of_order)} out of order` : "in order";
  const right = wrong.stray ? `${count(wrong.stray)} from the wrong business` : "from the right business";
  const sentence = statuses
    ? `${count(run.acked_in_all)} signed bodies with their durable 200. Statuses only: nothing is answered.`
    : `${count(tally.sent)} sent, ${count(messages)} acknowledged, ${count(tally.answered)} answered: ${count(tally.lost)} lost, ${count(wrong.doubled)} doubled, ${order}, ${right}.`;
  return `<div class="verdict ${good ? "good" : "bad"}"><h1>${text(title)}</h1><p>${sentence}</p><p class="soft small">${text(run.what)}; ${new Date(run.began).toISOString().slice(0, 19).replace("T", " ")} UTC</p></div>`;
}
function tiles() {
  const tile = (value, words) => `<div class="tile"><b>${value}</b><span>${words}</span></div>`;
  const all = [
    tile(count(run.acked / seconds) + "/s", "durable 200s" + (run.asked.rate ? `, asked for ${count(run.asked.rate)}/s` : "")),
    tile(time(run.ack.p50), "median to the 200"), tile(time(run.ack.p99), "p99 to the 200"),
    tile(trim(run.server.cpu_loaded / Math.max(run.acked, 1), 3) + " µs", "server CPU a 200, while loaded"),
    tile(bytes(run.server.rss_peak), "resident at most"),
    statuses ? tile(time(run.ack.max), "slowest 200") : tile(time(run.answer.p99), "p99 to the answer"),
  ];
  return `<section class="w12"><div class="tiles">${all.join("")}</div></section>`;
}
function rules() {
  const word = { pass: '<span class="good">pass</span>', fail: '<span class="bad">FAIL</span>', not_measured: '<span class="unsure">not measured</span>' };
  const rows = shown.rules.map((r) => `<tr><td style="width:28%">${text(r.rule)}</td><td style="width:110px">${word[r.state]}</td><td>${text(r.text)}</td></tr>`).join("");
  return section(12, "Meta's rule for webhook servers", `<table>${rows}</table>`);
}
function latencies() {
  const names = [["p50", "p50"], ["p90", "p90"], ["p95", "p95"], ["p99", "p99"], ["p999", "p99.9"], ["max", "max"]];
  const kinds = [[run.asked.rate ? "to the 200, from the intended time" : "to the 200", run.ack], ["those without a stall of the machine", run.quiet_ack], ["raw service time", run.service]];
  if (!statuses) kinds.push(["to the answer", run.answer], ["those without a stall of the machine", run.quiet_answer]);
  kinds.push(["how late this program woke up", run.lag]);
  const rows = kinds.map(([name, q]) => [name, ...names.map(([key]) => q.count ? time(q[key]) : "–"), count(q.count)]);
  const note = run.asked.rate
    ? "Open loop: each request has its time, and its latency counts from it, so a stall is charged to all who would have come meanwhile. Raw service time counts from the writing of the request."
    : "Closed loop: each connection posts when its last 200 is there, so latency follows from the number of connections; raw service time leaves out retries.";
  return section(12, "Latency", table(["", ...names.map((n) => n[1]), "count"], rows), note);
}
function claims() {
  const share = 100 * run.acked_in_all / Math.max(run.acked_in_all + run.refused + run.broken + run.given_up, 1);
  const rows = [["posts with a 200", "99.9 %", trim(share, 5) + " %"], ["p95", "1.2 s", time(run.ack.p95)], ["p99", "2.8 s", time(run.ack.p99)], ["requests a second", "500", count(run.acked / seconds)]];
  return section(4, "A line to beat", table(["", "claimed", "here"], rows), "What the Python service that this one replaces says of itself, at 500 users; its 200 comes before anything is stored.");
}
function refused() {
  const rows = Object.entries(run.reasons).sort((a, b) => b[1] - a[1]).map(([why, n]) => [text(why), count(n)]);
  if (run.given_up) rows.push(["requests that never got a 200", count(run.given_up)]);
  return section(4, "Every post without a 200", rows.length ? table(["reason", "posts"], rows) : '<p class="good">There was none.</p>');
}
function funnel() {
  const statusesOf = run.asked.receipts ? [["sent, delivered, read: 200", run.meta.webhooks_delivered, "d", run.meta.webhooks_pending ? count(run.meta.webhooks_pending) + " pending" : ""]] : [];
  const rows = [["messages with their 200", messages, "a"], ["turns of the agent", run.server.turns, "c", "messages of one conversation that wait become one turn"],
    ["replies accepted by Graph", run.meta.sent, "b", run.meta.faults_hit ? count(run.meta.faults_hit) + " sends made to go wrong" : ""], ["messages answered in them", tally.answered, "b"], ...statusesOf];
  return section(6, "From the 200 to the reply", bars(rows));
}
function serverTable() {
  const s = run.server, each = (us, n) => trim(us / Math.max(n, 1), 3) + " µs";
  const rows = [["CPU a 200, while loaded", each(s.cpu_loaded, run.acked)], ["CPU a 200, all that came after included", each(s.cpu, run.acked_in_all)],
    ["resident at most", bytes(s.rss_peak)], ["descriptors at most / after the users left", `${count(s.fds_peak)} / ${count(s.fds_after)}`]];
  if (s.commits) rows.push(["commits a second, over all", count(s.commits / Math.max(ticks.length ? ticks[ticks.length - 1].at : seconds, 1e-6))], ["messages a commit", trim(s.items / s.commits, 3)], ["commit with its fsync, p99 at most", time(s.commit_p99)]);
  const d = run.directory;
  if (d && d.hits + d.misses) rows.push([`directory (${d.store}): hit rate`, trim(100 * d.hits / (d.hits + d.misses), 5) + " %"], ["queries a message", trim((d.misses - d.joined) / Math.max(messages, 1), 3)]);
  return section(6, "The server", pairs(rows));
}
function generator() {
  const share = (us) => trim(us / 1e4 / seconds / Math.max(run.machine.cores, 1), 3) + " %";
  const rows = [["this program, of all cores", share(run.own_cpu)], ["simulated Meta", share(run.meta_cpu)], ["server", share(run.server.cpu_loaded)],
    ...(run.mongodb_cpu ? [["FerretDB", share(run.mongodb_cpu)]] : []), ["others on this machine", share(run.others_cpu)], ["late by p50 / p99", `${time(run.lag.p50)} / ${time(run.lag.p99)}`]];
  return section(4, "Was the load's own program the limit?", `<p class="${shown.generator[0] ? "unsure" : "good"}">${text(shown.generator[1].split(";")[0])}</p>${pairs(rows)}`);
}
function repeat() {
  const m = run.machine;
  const rows = [["seed", run.seed], ["cores", `${m.cores}, ${text(m.processor)}`], ["memory", bytes(m.memory)], ["kernel", text(m.kernel)], ["disk of the data", text(m.disk)], ["a page synced there", m.sync.count ? `p50 ${time(m.sync.p50)}, p99 ${time(m.sync.p99)}, p99.9 ${time(m.sync.p999)} before the load` : "not measured"],
    ["server", text(m.server)], ["loadtest", text(m.loadtest + (m.is_release ? "" : ", built WITHOUT optimizations"))], ["sources", text(m.commit || "–")], ["body", count(run.body_bytes) + " B"]];
  const body = rows.map(([name, value]) => `<tr><td class="soft" style="width:160px">${name}</td><td>${value}</td></tr>`).join("");
  return section(12, "To repeat it", `<pre>${text(run.command)}</pre><table>${body}</table>`);
}
function compared() {
  if (!shown.ratios.length) return "";
  const rows = shown.ratios.map((r) => [text(r.name), trim(r.old, 4) + r.unit, trim(r.new, 4) + r.unit, trim(r.ratio, 3) + "×", r.noise == null ? "not known" : trim(100 * r.noise, 2) + " %"]);
  return section(12, "Beside earlier runs", table(["", "before", "now", "ratio", "noise"], rows));
}
function report() {
  const rows = shown.lines.map((l) => `<tr><td class="mark ${l.red ? "bad" : "good"}">${l.red ? "RED" : "ok"}</td><td style="width:110px">${text(l.name)}</td><td>${text(l.text)}</td></tr>`).join("");
  return section(12, "The report's lines", `<table>${rows}</table>`);
}

const overTime = section(6, "200s over time", lines([
  { name: "offered", color: "c", of: (t) => rate(t, "offered"), dash: true },
  { name: "acknowledged", color: "a", of: (t) => rate(t, "acked") },
  { name: "refused or broken", color: "b", of: (t) => rate(t, "refused") }], (v) => short(v)), "A second.");
const latencyTime = section(6, "Time to the 200, over time", lines([
  { name: "p50", color: "a", of: (t) => t.acked ? t.p50 : null }, { name: "p99", color: "b", of: (t) => t.acked ? t.p99 : null }], (v) => time(v), { log: true }), "Logarithmic.");
const answersTime = statuses ? "" : section(6, "Waiting for their answer", lines([{ name: "messages with a 200 and no reply yet", color: "b", of: (t) => t.waiting }, { name: "turns under way", color: "c", of: (t) => t.running }], short));
const stagesTime = statuses ? "" : section(6, "Stages over time", lines([
  { name: "200s", color: "a", of: (t) => rate(t, "acked") }, { name: "turns", color: "c", of: (t) => rate(t, "turns") },
  { name: "messages answered at Graph", color: "b", of: (t) => rate(t, "answered") },
  ...(run.asked.receipts ? [{ name: "statuses taken in", color: "d", of: (t) => rate(t, "statuses") }] : [])], short), "A second.");
const answerLatency = statuses ? "" : section(6, "Time to the answer, over time", lines([
  { name: "p50", color: "a", of: (t) => t.answered ? t.answer_p50 : null }, { name: "p99", color: "b", of: (t) => t.answered ? t.answer_p99 : null }], (v) => time(v), { log: true }), "Logarithmic.");
const fair = run.shares.length > 1 ? section(6, "Fairness between businesses", dots(),
  (statuses ? "Time to the 200. " : "Time to the answer. ") + (run.asked.businesses > shown.tracked ? `The first ${shown.tracked} of ${count(run.asked.businesses)}.` : "")) : "";
const cpuTime = section(6, "CPU over time", lines([
  { name: "server", color: "a", of: (t) => t.cpu / t.span / 1e6 }, { name: "this program", color: "c", of: (t) => t.own_cpu / t.span / 1e6 },
  { name: "simulated Meta", color: "b", of: (t) => t.meta_cpu / t.span / 1e6 }], (v) => trim(v, 2)), "Cores in use.");
const memoryTime = section(6, "Resident memory over time", lines([{ name: "server, MiB", color: "a", of: (t) => t.rss ? t.rss / 2 ** 20 : null }], short));
const fdsTime = section(6, "Descriptors over time", lines([{ name: "server", color: "d", of: (t) => t.fds || null }], short));
const commitTime = sum(ticks.map((t) => t.commits)) ? section(6, "Commits over time", lines([
  { name: "commits a second", color: "a", of: (t) => rate(t, "commits") }, { name: "messages a commit", color: "b", of: (t) => t.commits ? t.items / t.commits : null }], short)) : "";

page.innerHTML = verdict() + '<div class="grid">' + tiles() + rules() + latencies() + overTime + latencyTime
  + section(12, "Where the time goes: every 200 by time and latency", heat(), "Darker: a larger share of the interval's 200s, logarithmic. Point at a cell for its count.")
  + (statuses ? "" : funnel()) + answersTime + stagesTime + answerLatency + fair + cpuTime + memoryTime + fdsTime + commitTime
  + serverTable() + generator() + claims() + refused() + repeat() + compared() + report() + "</div>";
