//! Tables for people: columns of text, spans of time.

use std::ops::Range;

/// Seconds, in the two units that matter.
pub fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

/// Rows under their heads, each column as wide as its widest; those of `numbers` stand to the right.
pub fn table<const N: usize>(heads: [&str; N], numbers: Range<usize>, rows: &[[String; N]]) -> String {
    let heads = heads.map(str::to_owned);
    let lines = || std::iter::once(&heads).chain(rows);
    let widths: [usize; N] =
        std::array::from_fn(|at| lines().map(|line| line[at].chars().count()).max().unwrap_or(0));
    let mut out = String::new();
    for line in lines() {
        let mut text = String::new();
        for (at, (cell, width)) in line.iter().zip(widths).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            let cell = if numbers.contains(&at) { format!("{pad}{cell}") } else { format!("{cell}{pad}") };
            text = text + &cell + "  ";
        }
        out = out + text.trim_end() + "\n";
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_short() {
        let spans = [0, 59, 60, 3599, 3600, 86_399, 86_400, 900_000].map(span);
        assert_eq!(spans, ["0s", "59s", "1m00s", "59m59s", "1h00m", "23h59m", "1d00h", "10d10h"]);
    }
}
