//! The Prometheus text format, read back: names, labels and values.

type Labels = Vec<(String, String)>;

/// One scrape.
pub struct Metrics {
    series: Vec<(String, Labels, f64)>,
}

impl Metrics {
    /// Panics on a line that is neither a comment nor a sample.
    #[track_caller]
    pub fn read(text: &str) -> Metrics {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Metrics { series: lines.map(sample).collect() }
    }

    /// The sum of all series of `name` that carry these labels; `None` where there is no such series.
    pub fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut values = self.matching(name, labels).peekable();
        values.peek()?;
        Some(values.fold(0.0, |sum, value| sum + value))
    }

    /// As `find`, 0 where there is no such series yet.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        // The sum of no floats is -0.0.
        self.matching(name, labels).fold(0.0, |sum, value| sum + value)
    }

    fn matching<'a>(&'a self, name: &'a str, labels: &'a [(&str, &str)]) -> impl Iterator<Item = f64> + 'a {
        let carries = move |have: &[(String, String)]| {
            labels.iter().all(|(key, value)| have.iter().any(|(k, v)| k == key && v == value))
        };
        let series = self.series.iter().filter(move |(n, have, _)| n == name && carries(have));
        series.map(|(_, _, value)| *value)
    }

    /// Every sample whose name ends in `_total`: (name with its labels, value).
    pub fn counters(&self) -> impl Iterator<Item = (String, f64)> + '_ {
        let counters = self.series.iter().filter(|(name, _, _)| name.ends_with("_total"));
        counters.map(|(name, labels, value)| (format!("{name}{labels:?}"), *value))
    }

    /// All names, once each.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.series.iter().map(|(name, _, _)| name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

#[track_caller]
fn sample(line: &str) -> (String, Labels, f64) {
    let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("not a sample: {line:?}"));
    let value = value.parse().unwrap_or_else(|_| panic!("not a number: {line:?}"));
    let Some((name, labels)) = series.split_once('{') else {
        return (series.to_owned(), Vec::new(), value);
    };
    (name.to_owned(), pairs(labels.trim_end_matches('}')), value)
}

/// `a="b",c="d \"e\""`
fn pairs(mut text: &str) -> Labels {
    let mut pairs = Vec::new();
    while let Some((key, rest)) = text.split_once("=\"") {
        let mut value = String::new();
        let mut characters = rest.char_indices();
        let mut end = rest.len();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    end = at + 1;
                    break;
                }
                '\\' => value.extend(characters.next().map(|(_, c)| if c == 'n' { '\n' } else { c })),
                other => value.push(other),
            }
        }
        pairs.push((key.trim_start_matches(',').to_owned(), value));
        text = &rest[end..];
    }
    pairs
}
