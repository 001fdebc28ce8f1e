//! Scan and inspection of a 745-byte SUBSCRIBE with 16 header fields, beside rsip on the same bytes in the same run.
//!
//! SPEC 14: at most 250 ns. The last line gives the ratio, from rounds in which the rivals take turns, since the clock of
//! a busy machine swings from minute to minute.

use std::{hint::black_box, time::Instant};

use criterion::Criterion;
use tidings::wire::*;

const MESSAGE: &[u8] = include_bytes!("../tests/fuzz/seeds/scan/subscribe.sip");

fn scan(index: &mut Index) {
    let view = index.scan(black_box(MESSAGE), &Limits::default());
    black_box(view.is_ok());
}

fn scan_and_inspect(index: &mut Index) {
    let view = index.scan(black_box(MESSAGE), &Limits::default()).ok().expect("a sound message");
    black_box(inspect(&view).is_ok());
}

fn rsip_parse() {
    black_box(rsip::SipMessage::try_from(black_box(MESSAGE)).is_ok());
}

fn main() {
    assert_eq!(MESSAGE.len(), 745);
    let mut index = Index::new();
    let mut criterion = Criterion::default().configure_from_args();
    criterion.bench_function("scan", |b| b.iter(|| scan(&mut index)));
    criterion.bench_function("scan+inspect", |b| b.iter(|| scan_and_inspect(&mut index)));
    criterion.bench_function("rsip", |b| b.iter(rsip_parse));
    criterion.final_summary();

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        ours.push(nanos(1000, || scan_and_inspect(&mut index)));
        theirs.push(nanos(100, rsip_parse));
    }
    let (ours, theirs) = (median(&mut ours), median(&mut theirs));
    println!("scan+inspect {ours:.0} ns, rsip {theirs:.0} ns: {:.1} times", theirs / ours);
}

fn nanos(times: u32, mut run: impl FnMut()) -> f64 {
    let start = Instant::now();
    for _ in 0..times {
        run();
    }
    start.elapsed().as_nanos() as f64 / f64::from(times)
}

fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}
