//! PURE. Cutting a long text where a reader would, into messages that Meta takes, in order.

use unicode_segmentation::UnicodeSegmentation;

use super::TEXT_MAX;

/// Cuts a text into pieces of at most [`TEXT_MAX`] characters, in order: at a blank line if there is one in the second
/// half of a piece, else at a line end or a sentence end there, else at any white space, else between two characters
/// as a reader sees them (grapheme clusters); inside of one only if it alone is too long. Only white space at the cuts
/// is lost. Blank text makes no piece.
pub fn split_text(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let end = fitting(rest, TEXT_MAX);
        let cut = if end == rest.len() { end } else { boundary(&rest[..end], &rest[end..]) };
        pieces.push(rest[..cut].trim_end());
        rest = rest[cut..].trim_start();
    }
    pieces
}

/// The length in bytes of the longest start of `text` that has at most `limit` UTF-16 units and tears no grapheme
/// cluster, unless its first alone is longer. Never 0.
fn fitting(text: &str, limit: usize) -> usize {
    // one code point takes at least as many bytes as units
    if text.len() <= limit {
        return text.len();
    }
    let mut units = 0;
    for (at, cluster) in text.grapheme_indices(true) {
        units += cluster.encode_utf16().count();
        if units > limit {
            return if at > 0 { at } else { fitting_code_points(text, limit) };
        }
    }
    text.len()
}

fn fitting_code_points(text: &str, limit: usize) -> usize {
    let mut units = 0;
    let over = text.char_indices().find(|(_, c)| {
        units += c.len_utf16();
        units > limit
    });
    over.map_or(text.len(), |(at, _)| at)
}

/// Where to cut `piece`, in bytes, if `next` follows it. Never 0: `piece` begins with what is no white space.
fn boundary(piece: &str, next: &str) -> usize {
    if next.starts_with(['\n', '\r']) {
        return piece.len();
    }
    let half = piece.len() / 2;
    let last = |ends: &[&str]| {
        let after = ends.iter().filter_map(|end| piece.rfind(end).map(|at| at + end.len()));
        after.max().filter(|at| *at > half)
    };
    last(&["\n\n", "\n\r\n"])
        .or_else(|| last(&["\n"]))
        .or_else(|| last(&[". ", "! ", "? ", "。", "！", "？"]))
        .or_else(|| next.starts_with(char::is_whitespace).then_some(piece.len()))
        .or_else(|| piece.rfind(char::is_whitespace).filter(|at| *at > 0))
        .unwrap_or(piece.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pieces_fit_in_any_reading_of_the_limit() {
        let emoji = "😀".repeat(4096);
        assert_eq!(split_text(&emoji), ["😀".repeat(2048), "😀".repeat(2048)]);
    }

    #[test]
    fn texts_are_cut_where_a_reader_would() {
        let paragraph = "word ".repeat(500);
        let text = format!("{paragraph}\n\n{paragraph}\n\n{paragraph}");
        assert_eq!(split_text(&text), [paragraph.trim(); 3]);
        let text = "One sentence here. ".repeat(400);
        let pieces = split_text(&text);
        assert!(pieces.len() > 1 && pieces.iter().all(|p| p.ends_with("here.")));
        assert_eq!(split_text(&"x".repeat(5000)), ["x".repeat(4096), "x".repeat(904)]);
        assert_eq!(split_text(" \n "), [""; 0]);
        let windows = format!("{}\r\n\r\n{}", "x ".repeat(1500).trim(), "y ".repeat(1500).trim());
        assert_eq!(split_text(&windows).len(), 2);
        assert!(split_text(&windows)[0].ends_with('x'));
        for whole in ["👨‍👩‍👧", "🇩🇪", "न्दे", "각", "👍🏽", "e\u{301}\u{302}"]
        {
            for piece in split_text(&whole.repeat(3000)) {
                assert_eq!(piece.matches(whole).count() * whole.len(), piece.len(), "{whole} is torn");
            }
        }
        let endless = format!("e{}", "\u{301}".repeat(10_000));
        assert_eq!(split_text(&endless).concat(), endless);
    }

    proptest! {
        #[test]
        fn only_white_space_at_the_cuts_is_lost(
            parts in prop::collection::vec(
                "(\\PC{0,30}|[a-z]{0,3000}|([a-z]{1,9}[ .]){0,500}|(\\w\n){0,900}|\n\n|\r\n|\n| |👍🏽|é|🇩🇪{0,900})",
                0..20,
            )
        ) {
            let text = parts.concat();
            let pieces = split_text(&text);
            let mut rest = text.as_str();
            for piece in &pieces {
                prop_assert!(!piece.is_empty() && piece.trim() == *piece);
                prop_assert!(piece.encode_utf16().count() <= TEXT_MAX);
                rest = rest.trim_start().strip_prefix(piece).expect("in order, with nothing left out");
            }
            prop_assert_eq!(rest.trim(), "");
        }
    }
}
