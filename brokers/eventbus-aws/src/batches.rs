//! Batches as SNS and SQS take them: ten at most, and no larger together than one message may be. Pure.

/// How many entries a batch has at most.
pub(crate) const MOST: usize = 10;
/// How many bytes a message, and a batch, has at most: what SNS takes.
pub(crate) const LARGEST: usize = 256 << 10;

/// How many of the first entries of these sizes go together: all that fit, and at least one.
pub(crate) fn first_batch(sizes: impl IntoIterator<Item = usize>) -> usize {
    let (mut count, mut bytes) = (0, 0_usize);
    for size in sizes.into_iter().take(MOST) {
        bytes = bytes.saturating_add(size);
        if count > 0 && bytes > LARGEST {
            break;
        }
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_ten_entries_and_the_size_of_one_message_at_most() {
        assert_eq!(first_batch([1; 25]), 10);
        assert_eq!(first_batch([1; 3]), 3);
        assert_eq!(first_batch([]), 0);
        assert_eq!(first_batch([LARGEST, 1]), 1);
        assert_eq!(first_batch([LARGEST - 1, 1, 1]), 2);
        assert_eq!(first_batch([LARGEST + 1, 1]), 1, "what is too large goes alone, and is refused alone");
        assert_eq!(first_batch([usize::MAX, usize::MAX]), 1);
    }
}
