//! How far two words are apart, for "did you mean".

/// The longest word that is compared; longer ones are never near.
const LONGEST: usize = 64;

/// The number of single-byte insertions, deletions and replacements, and of swaps of two neighbours, that turn
/// `left` into `right`; `usize::MAX` where a word has more than 64 bytes.
pub const fn distance(left: &str, right: &str) -> usize {
    let (left, right) = (left.as_bytes(), right.as_bytes());
    if left.len() > LONGEST || right.len() > LONGEST {
        return usize::MAX;
    }
    let mut before = [0; LONGEST + 1];
    let mut above = [0; LONGEST + 1];
    let mut row = [0; LONGEST + 1];
    let mut column = 0;
    while column <= right.len() {
        above[column] = column;
        column += 1;
    }
    let mut line = 1;
    while line <= left.len() {
        row[0] = line;
        let mut column = 1;
        while column <= right.len() {
            let differs = (left[line - 1] != right[column - 1]) as usize;
            let mut least = min(min(above[column] + 1, row[column - 1] + 1), above[column - 1] + differs);
            if line > 1
                && column > 1
                && left[line - 1] == right[column - 2]
                && left[line - 2] == right[column - 1]
            {
                least = min(least, before[column - 2] + 1);
            }
            row[column] = least;
            column += 1;
        }
        before = above;
        above = row;
        line += 1;
    }
    above[right.len()]
}

/// Whether `typed` is likely a slip for `meant`: two edits, or a quarter of the word where that is more.
pub const fn is_near(typed: &str, meant: &str) -> bool {
    let shorter = min(typed.len(), meant.len());
    let limit = if shorter <= 3 {
        1
    } else if shorter / 4 > 2 {
        shorter / 4
    } else {
        2
    };
    distance(typed, meant) <= limit
}

const fn min(left: usize, right: usize) -> usize {
    if left < right { left } else { right }
}

#[cfg(test)]
mod tests {
    use super::{distance, is_near};

    #[test]
    fn edits_and_swaps_are_counted() {
        for (left, right, expected) in [
            ("", "abc", 3),
            ("order", "order", 0),
            ("plcaed", "placed", 1),
            ("retires", "retries", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(left, right), expected, "{left} {right}");
            assert_eq!(distance(right, left), expected, "{right} {left}");
        }
        assert_eq!(distance(&"a".repeat(65), "a"), usize::MAX);
    }

    #[test]
    fn another_word_is_not_near() {
        assert!(is_near("order.plcaed", "order.placed"));
        assert!(!is_near("order.placed", "order.shipped"));
        assert!(!is_near("a", "xyz"));
    }
}
