//! Many calls of one kind, a few of them at once.

use crate::connection::Trouble;
use tokio::task::{JoinError, JoinSet};

/// How many are under way at once.
const AT_ONCE: usize = 8;

/// Does something with each, a few at once; what comes of it where there is something, in no order. Of one that panics nothing
/// is known: it may be otherwise another time.
pub(crate) async fn each<T, R, F>(all: Vec<T>, mut task: impl FnMut(T) -> F) -> Result<Vec<R>, Trouble>
where
    R: Send + 'static,
    F: Future<Output = Result<Option<R>, Trouble>> + Send + 'static,
{
    let (mut tasks, mut results) = (JoinSet::new(), Vec::with_capacity(all.len()));
    for one in all {
        if tasks.len() == AT_ONCE
            && let Some(ended) = tasks.join_next().await
        {
            results.extend(known(ended)?);
        }
        tasks.spawn(task(one));
    }
    while let Some(ended) = tasks.join_next().await {
        results.extend(known(ended)?);
    }
    Ok(results)
}

fn known<R>(ended: Result<Result<R, Trouble>, JoinError>) -> Result<R, Trouble> {
    ended.unwrap_or_else(|error| Err(Trouble::Passing(error.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_that_panics_is_not_left_out() {
        for panics in [0, AT_ONCE, 2 * AT_ONCE] {
            let all = each((0..=2 * AT_ONCE).collect(), |number| async move {
                assert_ne!(number, panics, "nobody has thought of it");
                Ok(Some(number))
            });
            let trouble = all.await.unwrap_err();
            assert!(matches!(&trouble, Trouble::Passing(said) if said.contains("thought of")), "{trouble}");
        }
    }
}
