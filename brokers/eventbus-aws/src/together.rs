//! Many calls of one kind, a few of them at once.

use crate::connection::Trouble;
use tokio::task::JoinSet;

/// How many are under way at once.
const AT_ONCE: usize = 8;

/// Does something with each, a few at once; what comes of it where there is something, in no order.
pub(crate) async fn each<T, R, F>(all: Vec<T>, mut task: impl FnMut(T) -> F) -> Result<Vec<R>, Trouble>
where
    R: Send + 'static,
    F: Future<Output = Result<Option<R>, Trouble>> + Send + 'static,
{
    let (mut tasks, mut results) = (JoinSet::new(), Vec::with_capacity(all.len()));
    for one in all {
        if tasks.len() == AT_ONCE
            && let Some(Ok(result)) = tasks.join_next().await
        {
            results.extend(result?);
        }
        tasks.spawn(task(one));
    }
    while let Some(result) = tasks.join_next().await {
        if let Ok(result) = result {
            results.extend(result?);
        }
    }
    Ok(results)
}
