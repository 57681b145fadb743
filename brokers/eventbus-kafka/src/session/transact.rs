//! The transactions of a session: what handlers have returned, with what that settles.

use super::{Session, add_part};
use crate::errands::Errand;
use crate::held::Commit;
use crate::keeper::Broken;
use crate::subscribe::Ahead;
use crate::subscription::State;
use crate::transaction::{Answering, Told, Transacted, Transaction};
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How much goes into one transaction.
const TOGETHER: Ahead = Ahead { count: 512, bytes: 4 << 20 };
/// How long what was aborted waits for the next transaction.
const AGAIN: Duration = Duration::from_millis(50);

impl Session {
    /// Begins a transaction with what handlers have returned meanwhile, where something is. It settles everything else as
    /// well that is to be committed.
    pub(super) fn transact(&mut self) -> bool {
        if self.subscription.state.lock().answers.is_empty() {
            return false;
        }
        let member = self.consumer.group_metadata();
        // The member that has what is settled: asked for first, since one that has lost it may join as another one.
        let Some(member) = member.filter(|_| !self.consumer.assignment_lost()) else {
            self.answer_at = Instant::now() + AGAIN;
            return false;
        };
        let longest = self.subscription.link.longest_text();
        let mut over = Vec::new();
        // Under one lock: a delivery that is given back is in no transaction, or waits for its end.
        let (answers, commit) = {
            let mut state = self.subscription.state.lock();
            let answers = self.next_answers(&mut state, &mut over);
            let tokens: Vec<_> = answers.iter().map(|answer| answer.token).collect();
            let commit = if tokens.is_empty() { None } else { state.held.begin_commit(longest, tokens) };
            (answers, commit)
        };
        for (answer, told) in over {
            answer.tell(told);
        }
        let Some(commit) = commit else {
            self.answer_again(answers);
            return false;
        };
        let mut offsets = TopicPartitionList::with_capacity(commit.parts.len());
        for part in &commit.parts {
            add_part(&mut offsets, part);
        }
        let records = answers.iter().map(|answer| Arc::clone(&answer.records)).collect();
        (self.answering, self.committing) = (answers, Some(commit));
        self.committed_at = Instant::now();
        if !self.ask(Errand::Transact(Box::new(Transaction { records, offsets, member }))) {
            self.broken = Some(Broken::Unanswered);
        }
        true
    }

    /// Takes what goes into the next transaction. Who has waited too long for it, or is not open any more, is `over`.
    fn next_answers(&self, state: &mut State, over: &mut Vec<(Answering, Told)>) -> Vec<Answering> {
        let patience = self.subscription.link.settings.publish_timeout;
        let waits = Instant::now() < self.answer_at;
        let (mut next, mut bytes) = (Vec::<Answering>::new(), 0);
        let mut rest = VecDeque::new();
        while let Some(answer) = state.answers.pop_front() {
            if !state.held.is_open(answer.token) {
                over.push((answer, Told::Lost));
            } else if answer.since.elapsed() >= patience {
                over.push((answer, Told::Late));
            } else if !answer.is_given_up() {
                let is_full = match next.last() {
                    None => waits,
                    Some(last) => last.alone || answer.alone || TOGETHER.is_reached(next.len(), bytes),
                };
                if is_full {
                    rest.push_back(answer);
                } else {
                    bytes += answer.size();
                    next.push(answer);
                }
            }
        }
        state.answers = rest;
        next
    }

    /// They go into another transaction.
    fn answer_again(&self, answers: Vec<Answering>) {
        let mut state = self.subscription.state.lock();
        for answer in answers.into_iter().rev() {
            state.answers.push_front(answer);
        }
    }

    /// A transaction has ended.
    pub(super) fn end_transaction(&mut self, transacted: Transacted) {
        let mut answers = std::mem::take(&mut self.answering);
        let all: HashSet<_> = self.committing.iter().flat_map(Commit::partitions).collect();
        match transacted {
            Transacted::Committed => {
                self.hear_of_commit(&Ok(()));
                self.end_commit(&HashSet::new());
                answers.into_iter().for_each(|answer| answer.tell(Told::Done));
            }
            Transacted::Refused(mut to_blame) => {
                self.end_commit(&all);
                if answers.len() == 1
                    && let (Some(answer), Some((_, place, error))) = (answers.pop(), to_blame.pop())
                {
                    return answer.tell(Told::Refused(place, error));
                }
                for (place, ..) in to_blame {
                    answers[place].alone = true;
                }
                self.answer_again(answers);
                // What was given back meanwhile is at hand.
                self.subscription.state.wake();
            }
            Transacted::Aborted(error) => {
                let code = error.as_ref().and_then(KafkaError::rdkafka_error_code);
                if code == Some(RDKafkaErrorCode::OffsetMetadataTooLarge) {
                    let texts = self.committing.iter().flat_map(|commit| &commit.parts);
                    let longest = texts.map(|part| part.text.len()).max();
                    self.subscription.link.shorten_texts(longest.unwrap_or_default());
                }
                self.end_commit(&all);
                self.answer_at = Instant::now() + AGAIN;
                self.answer_again(answers);
                self.subscription.state.wake();
                if let Some(error) = error {
                    self.hear_of_commit(&Err(error));
                }
            }
            // What it was to settle is lost with this session, and the next one asks the server what was committed.
            Transacted::Unknown(said) => self.broken = Some(Broken::Fatal(said)),
        }
    }
}
