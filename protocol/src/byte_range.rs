//! The `Range` header: which bytes of some content a client wants.
//!
//! Parses what the client wrote and applies it to a size. It does not answer: status codes and
//! bodies belong to the registry. A header that is ill-formed or abusive is no error, it counts
//! as not sent, so that the client gets everything.
//! Source: RFC 9110 section 14; CLIENT-CONTRACT B1 to B4.

use std::fmt;
use std::ops::Range;

/// Most ranges of one request that are answered one by one.
///
/// Partial pulls of seekable layers ask for a handful at a time; a request with hundreds of
/// tiny ranges costs more to answer than the whole content.
pub const MAX_RANGES: usize = 32;

/// A well-formed `Range` header in bytes, not yet applied to any content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByteRanges {
    first: Spec,
    /// The specs behind the first; empty for nearly every request, and then without a heap.
    others: Vec<Spec>,
}

/// One element of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spec {
    /// `first-` or `first-last`; `last` is inclusive, `u64::MAX` when left open.
    From { first: u64, last: u64 },
    /// `-length`: the last bytes of the content.
    Suffix { length: u64 },
}

/// What of some content of known size is to be sent. Ranges are half-open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Everything, as if no range had been asked for.
    Full,
    /// One range, which is not empty.
    Single(Range<u64>),
    /// Several were asked for: those that exist, in the client's order, none of them empty and
    /// no two overlapping. At least one, at most [`MAX_RANGES`].
    Multi(Vec<Range<u64>>),
    /// The one range that was asked for lies outside the content.
    Unsatisfiable,
}

impl ByteRanges {
    /// Parses the value of a `Range` header.
    ///
    /// Returns `None` for what is to be ignored: another unit than bytes, an ill-formed value,
    /// or more than [`MAX_RANGES`] ranges.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?;
        let (unit, list) = text.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        let mut specs = list
            .split(',')
            .map(|element| element.trim_matches([' ', '\t']))
            .filter(|element| !element.is_empty())
            .map(Spec::parse);
        let first = specs.next()??;
        let others: Vec<Spec> = specs.take(MAX_RANGES).collect::<Option<_>>()?;
        (others.len() < MAX_RANGES).then_some(Self { first, others })
    }

    /// Whether several ranges were asked for.
    pub fn is_multiple(&self) -> bool {
        !self.others.is_empty()
    }

    /// Whether this is `bytes=0-`, which needs no size to be answered with everything.
    pub fn is_everything(&self) -> bool {
        let whole = Spec::From {
            first: 0,
            last: u64::MAX,
        };
        self.first == whole && self.others.is_empty()
    }

    /// Applies the header to content of `size` bytes.
    ///
    /// Several ranges are all or nothing where it costs: if two overlap, or none exists, the
    /// answer is everything (a multi-range request must never meet 416, B3). Empty content has
    /// no ranges at all (B4).
    pub fn select(&self, size: u64) -> Selection {
        if size == 0 {
            return Selection::Full;
        }
        if self.others.is_empty() {
            return match self.first.within(size) {
                Some(range) => Selection::Single(range),
                None => Selection::Unsatisfiable,
            };
        }
        let ranges: Vec<Range<u64>> = std::iter::once(&self.first)
            .chain(&self.others)
            .filter_map(|spec| spec.within(size))
            .collect();
        if ranges.is_empty() || overlap(&ranges) {
            return Selection::Full;
        }
        Selection::Multi(ranges)
    }
}

impl Spec {
    fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-')?;
        if first.is_empty() {
            return Some(Self::Suffix {
                length: number(last)?,
            });
        }
        let first = number(first)?;
        let last = if last.is_empty() {
            u64::MAX
        } else {
            number(last)?
        };
        (first <= last).then_some(Self::From { first, last })
    }

    /// The bytes that this selects of `size`, or `None` if it selects none.
    fn within(&self, size: u64) -> Option<Range<u64>> {
        let range = match *self {
            Self::From { first, last } => first..last.saturating_add(1).min(size),
            Self::Suffix { length } => size.saturating_sub(length)..size,
        };
        (!range.is_empty()).then_some(range)
    }
}

/// Reads decimal digits; a number beyond 64 bits lies behind the end of any content, as
/// `u64::MAX` does.
fn number(digits: &str) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(digits.parse().unwrap_or(u64::MAX))
}

fn overlap(ranges: &[Range<u64>]) -> bool {
    let mut sorted: Vec<&Range<u64>> = ranges.iter().collect();
    sorted.sort_unstable_by_key(|range| range.start);
    sorted.windows(2).any(|pair| pair[0].end > pair[1].start)
}

/// The value of a `Content-Range` header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentRange {
    /// The bytes that follow, half-open; `None` with the status 416.
    pub range: Option<Range<u64>>,
    /// Size of the whole content in bytes.
    pub size: u64,
}

impl fmt::Display for ContentRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.range {
            // On the wire the last position is inclusive.
            Some(range) => {
                let last = range.end.saturating_sub(1);
                write!(f, "bytes {}-{last}/{}", range.start, self.size)
            }
            None => write!(f, "bytes */{}", self.size),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn select(header: &str, size: u64) -> Selection {
        match ByteRanges::parse(header.as_bytes()) {
            Some(ranges) => ranges.select(size),
            None => Selection::Full,
        }
    }

    #[test]
    fn one_range_in_its_three_forms() {
        for (header, selected) in [
            ("bytes=0-", 0..1000),
            ("bytes=2-", 2..1000),
            ("bytes=0-0", 0..1),
            ("bytes=10-19", 10..20),
            ("bytes=990-5000", 990..1000),
            ("bytes=-1", 999..1000),
            ("bytes=-5000", 0..1000),
            ("BYTES= 1-2 ,", 1..3),
            ("bytes=1-99999999999999999999999", 1..1000),
        ] {
            assert_eq!(
                select(header, 1000),
                Selection::Single(selected),
                "{header}"
            );
        }
    }

    #[test]
    fn a_range_outside_the_content_is_unsatisfiable() {
        for header in [
            "bytes=1000-",
            "bytes=1000-1001",
            "bytes=-0",
            "bytes=18446744073709551616-",
        ] {
            assert_eq!(select(header, 1000), Selection::Unsatisfiable, "{header}");
            assert_eq!(
                select(header, 0),
                Selection::Full,
                "empty content: {header}"
            );
        }
    }

    #[test]
    fn an_ill_formed_header_counts_as_not_sent() {
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=,",
            "bytes=-",
            "bytes=a-b",
            "bytes=5-1",
            "bytes=+1-2",
            "lines=1-2",
            "bytes=1-2,x",
            "bytes=1-2-3",
            "bytes 1-2",
            "bytes=0x1-2",
            "bytes=1 - 2",
        ] {
            assert_eq!(ByteRanges::parse(header.as_bytes()), None, "{header}");
        }
        assert_eq!(ByteRanges::parse(b"bytes=\xff-"), None);
    }

    #[test]
    fn only_an_open_range_from_the_start_is_everything() {
        let is_everything = |header: &str| {
            ByteRanges::parse(header.as_bytes()).is_some_and(|ranges| ranges.is_everything())
        };
        assert!(is_everything("bytes=0-"));
        for header in ["bytes=1-", "bytes=0-5", "bytes=-5", "bytes=0-,5-"] {
            assert!(!is_everything(header), "{header}");
        }
    }

    #[test]
    fn several_ranges_keep_their_order() {
        assert_eq!(
            select("bytes=0-99, 200-299,-10", 1000),
            Selection::Multi(vec![0..100, 200..300, 990..1000])
        );
        assert_eq!(
            select("bytes=500-,0-9", 1000),
            Selection::Multi(vec![500..1000, 0..10])
        );
    }

    #[test]
    fn several_ranges_never_end_in_unsatisfiable() {
        assert_eq!(select("bytes=1000-,2000-", 1000), Selection::Full);
        assert_eq!(
            select("bytes=0-9,2000-", 1000),
            Selection::Multi(vec![Range { start: 0, end: 10 }])
        );
    }

    #[test]
    fn abusive_ranges_get_everything() {
        assert_eq!(select("bytes=0-10,5-20", 1000), Selection::Full);
        assert_eq!(select("bytes=0-,0-", 1000), Selection::Full);
        let list = |count: u64| {
            let ranges: Vec<String> = (0..count).map(|i| format!("{0}-{0}", i * 2)).collect();
            format!("bytes={}", ranges.join(","))
        };
        assert!(matches!(select(&list(32), 1000), Selection::Multi(ranges) if ranges.len() == 32));
        assert_eq!(ByteRanges::parse(list(33).as_bytes()), None);
    }

    #[test]
    fn content_range_is_inclusive_on_the_wire() {
        let of = |range, size| ContentRange { range, size }.to_string();
        assert_eq!(of(Some(0..1000), 1000), "bytes 0-999/1000");
        assert_eq!(of(Some(999..1000), 1000), "bytes 999-999/1000");
        assert_eq!(of(None, 1000), "bytes */1000");
    }

    proptest! {
        #[test]
        fn any_header_selects_only_bytes_that_exist(header: Vec<u8>, size: u64) {
            if let Some(ranges) = ByteRanges::parse(&header) {
                assert_inside(&ranges.select(size), size);
            }
        }

        #[test]
        fn any_list_of_numbers_selects_only_bytes_that_exist(
            header in "bytes=[0-9]{0,3}-[0-9]{0,3}(,[0-9]{0,3}-[0-9]{0,3}){0,4}",
            size in 0u64..1000,
        ) {
            if let Some(ranges) = ByteRanges::parse(header.as_bytes()) {
                assert_inside(&ranges.select(size), size);
            }
        }

        #[test]
        fn what_is_printed_selects_itself(start in 0u64..1000, length in 1u64..1000) {
            let range = start..start + length;
            let printed = ContentRange { range: Some(range.clone()), size: 5000 }.to_string();
            let header = printed.replace("bytes ", "bytes=").replace("/5000", "");
            prop_assert_eq!(select(&header, 5000), Selection::Single(range));
        }
    }

    fn assert_inside(selection: &Selection, size: u64) {
        let ranges = match selection {
            Selection::Full | Selection::Unsatisfiable => return,
            Selection::Single(range) => std::slice::from_ref(range),
            Selection::Multi(ranges) => ranges,
        };
        assert!(!ranges.is_empty() && ranges.len() <= MAX_RANGES);
        let total: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        assert!(total <= size);
        for range in ranges {
            assert!(range.start < range.end && range.end <= size);
        }
    }
}
