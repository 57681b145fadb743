//! Guarding: what hands deliveries out is run only while the group is ours.

use super::Reader;
use crate::entry;
use crate::script;
use crate::trouble::Trouble;
use redis::{Cmd, Pipeline, Value};

impl Reader<'_> {
    /// Guards what is read next; `false`: the group is somebody else's.
    async fn watch(&mut self) -> Result<bool, Trouble> {
        let key = self.claim.store.keys.token(&self.claim.group, &self.claim.pattern);
        let token = self.claim.state().token.clone();
        self.send("cannot watch a lease", redis::cmd("WATCH").arg(&key)).await?;
        let known = self.send("cannot watch a lease", redis::cmd("GET").arg(&key)).await?;
        Ok(entry::text(known).is_some_and(|known| known == token))
    }

    /// Guards what is read next, and keeps the server from running what was asked for on an earlier connection once that
    /// is listed which is pending: it would come late, behind newer events of its keys. Such a read watches the token, which
    /// is written anew. `false`: the group is somebody else's.
    pub(super) async fn fence(&mut self) -> Result<bool, Trouble> {
        if !self.watch().await? {
            return Ok(false);
        }
        let mut fence = script::FENCE.call(&self.claim.store.keys);
        fence.arg(&self.claim.group).arg(self.claim.pattern.as_str()).arg(self.claim.state().token.clone());
        self.send("cannot guard a group", &fence).await?;
        // Where it was not written, somebody else has the group.
        self.watch().await
    }

    /// Runs commands that hand deliveries out, all at one moment. None: the group is somebody else's, and nothing was
    /// handed out.
    pub(super) async fn guarded(
        &mut self,
        what: &str,
        commands: Vec<Cmd>,
    ) -> Result<Option<Vec<Value>>, Trouble> {
        let (claim, count) = (self.claim, commands.len());
        let mut pipeline = Pipeline::new();
        if claim.competing {
            commands.into_iter().for_each(|command| _ = pipeline.add_command(command));
            let answers = self.run(what, &pipeline, count).await?;
            return answers
                .into_iter()
                .map(|answer| checked(what, answer))
                .collect::<Result<_, _>>()
                .map(Some);
        }
        let key = claim.store.keys.token(&claim.group, &claim.pattern);
        pipeline.cmd("MULTI");
        commands.into_iter().for_each(|command| _ = pipeline.add_command(command));
        pipeline.cmd("EXEC").cmd("WATCH").arg(&key).cmd("GET").arg(&key);
        let mut answers = self.run(what, &pipeline, count + 4).await?;
        let token = checked(what, answers.pop().unwrap_or_default())?;
        let ours = entry::text(token).is_some_and(|token| token == claim.state().token);
        answers.pop();
        let executed = answers.pop().unwrap_or_default();
        // What was wrong with one of them says more than that they were not run.
        for queued in answers {
            match checked(what, queued) {
                Err(trouble) if trouble.is("OOM") => {
                    // What stands between `MULTI` and `EXEC`.
                    let commands = pipeline.cmd_iter().skip(1).take(count);
                    return self.guarded_by_script(what, commands).await;
                }
                queued => _ = queued?,
            }
        }
        match checked(what, executed)? {
            Value::Array(answers) => {
                if !ours {
                    claim.lose();
                    return Ok(None);
                }
                answers.into_iter().map(|answer| checked(what, answer)).collect::<Result<_, _>>().map(Some)
            }
            _ => {
                if !ours {
                    claim.lose();
                }
                Ok(None)
            }
        }
    }

    /// The same while the server has no memory left, and takes no command into a transaction. Were nothing read then, nothing
    /// would be settled, and no event could be removed.
    async fn guarded_by_script(
        &mut self,
        what: &str,
        commands: impl Iterator<Item = &Cmd>,
    ) -> Result<Option<Vec<Value>>, Trouble> {
        let claim = self.claim;
        let mut call = script::GUARDED.call(&claim.store.keys);
        call.arg(&claim.group).arg(claim.pattern.as_str()).arg(claim.state().token.clone());
        for command in commands {
            let words: Vec<&[u8]> = command.args_iter().filter_map(word).collect();
            call.arg(words.len()).arg(words);
        }
        match self.send(what, &call).await? {
            Value::Array(answers) => Ok(Some(answers)),
            _ => {
                claim.lose();
                Ok(None)
            }
        }
    }

    async fn run(&mut self, what: &str, pipeline: &Pipeline, count: usize) -> Result<Vec<Value>, Trouble> {
        let answers = self.connection.send_packed_commands(pipeline, 0, count);
        match tokio::time::timeout(self.patience, answers).await {
            Ok(answers) => answers.map_err(|error| Trouble::of(what, &error)),
            Err(_) => Err(Trouble::late(what)),
        }
    }
}

fn word(argument: redis::Arg<&[u8]>) -> Option<&[u8]> {
    if let redis::Arg::Simple(word) = argument { Some(word) } else { None }
}

fn checked(what: &str, answer: Value) -> Result<Value, Trouble> {
    answer.extract_error().map_err(|error| Trouble::of(what, &error))
}
