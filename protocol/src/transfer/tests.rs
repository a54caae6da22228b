//! The rules, one by one; chains of nodes in virtual time are in `tests/chain`.

use super::sources::{BROKEN_PAUSE, MAX_BROKEN, MAX_BROKEN_BEFORE_ANY, MAX_FAILURES, SLOW_PAUSE};
use super::*;

fn node(number: u8) -> NodeId {
    NodeId::new([number; 32])
}

fn read(source: u8, first: u32, count: u32) -> Step {
    Step::Read {
        source: node(source),
        first,
        count,
    }
}

fn taking(chunks: u32, sources: &[u8]) -> Taking {
    let mut taking = Taking::new(chunks);
    taking.handle_sources(sources.iter().copied().map(node).collect());
    taking
}

#[test]
fn chunks_are_read_in_order_from_the_best_source() {
    let now = Duration::ZERO;
    let mut taking = taking(70, &[1, 2]);
    assert_eq!(taking.poll(now), read(1, 0, 64));
    assert_eq!(taking.poll(now), Step::Wait(None), "one read at a time");
    (0..64).for_each(|index| taking.handle_chunk(index));
    taking.handle_done();
    assert_eq!(taking.poll(now), read(1, 64, 6));
    (64..70).for_each(|index| taking.handle_chunk(index));
    assert_eq!(taking.poll(now), Step::Complete);
}

#[test]
fn a_source_that_has_nothing_new_is_left_for_a_moment() {
    let now = Duration::ZERO;
    let mut taking = taking(10, &[1, 2]);
    taking.poll(now);
    taking.handle_chunk(0);
    taking.handle_not_yet(now);
    assert_eq!(taking.poll(now), read(2, 1, 4), "it helps out");
    taking.handle_not_yet(now);
    assert_eq!(taking.poll(now), Step::Wait(Some(now + SLOW_PAUSE)));
    assert_eq!(taking.poll(now + SLOW_PAUSE), read(1, 1, 9));
}

#[test]
fn who_had_nothing_is_asked_again_after_the_others() {
    let mut now = Duration::ZERO;
    let mut taking = taking(10, &[1, 2, 3]);
    // Each is waited for longer than one that had nothing is left alone.
    for (source, count) in [(1, 10), (2, 4), (3, 4), (1, 10), (2, 4)] {
        assert_eq!(taking.poll(now), read(source, 0, count));
        now += SLOW_PAUSE * 6;
        taking.handle_not_yet(now);
        now += SLOW_PAUSE;
    }
    assert_eq!(taking.poll(now), read(3, 0, 4));
    taking.handle_chunk(0);
    taking.handle_not_yet(now);
    assert_eq!(taking.poll(now), read(1, 1, 9), "something flows again");
}

#[test]
fn a_wrong_source_is_never_asked_again_and_a_failing_one_three_times() {
    let mut now = Duration::ZERO;
    let mut taking = taking(10, &[1, 2]);
    assert_eq!(taking.poll(now), read(1, 0, 10));
    taking.handle_wrong(node(1));
    for _ in 0..MAX_FAILURES {
        assert_eq!(taking.poll(now), read(2, 0, 10));
        taking.handle_failed(now);
        now += Duration::from_secs(60);
    }
    assert_eq!(taking.poll(now), Step::Exhausted);
    taking.handle_hint(&[node(1), node(3)]);
    assert_eq!(taking.poll(now), read(3, 0, 10));
}

/// Lets the source that is asked break off its answer behind `chunks` chunks.
fn break_off(taking: &mut Taking, now: Duration, first: u32, chunks: u32) {
    (first..first + chunks).for_each(|index| taking.handle_chunk(index));
    taking.handle_broken_off(now);
}

#[test]
fn who_breaks_off_its_answers_is_left_before_others_are_waited_for() {
    let mut now = Duration::ZERO;
    let mut taking = taking(10, &[1, 2, 3]);
    for source in [1, 2] {
        taking.poll(now);
        assert_eq!(taking.reading(), Some(node(source)));
        taking.handle_not_yet(now);
    }
    for _ in 0..MAX_BROKEN_BEFORE_ANY {
        assert_eq!(taking.poll(now), read(3, 0, 4));
        break_off(&mut taking, now, 0, 0);
        now += BROKEN_PAUSE;
    }
    assert!(taking.is_banned(&node(3)));
    assert!(now < SLOW_PAUSE * 2, "{now:?}");
}

#[test]
fn who_breaks_off_its_answers_is_left_also_where_chunks_come_of_them() {
    let mut now = Duration::ZERO;
    let mut taking = taking(100, &[1]);
    // An answer that was given whole makes up for those before it.
    for index in [0, 1] {
        assert_eq!(taking.poll(now), read(1, index, 64));
        break_off(&mut taking, now, index, 1);
        now += BROKEN_PAUSE * (index + 1);
    }
    assert_eq!(taking.poll(now), read(1, 2, 64));
    (2..66).for_each(|index| taking.handle_chunk(index));
    taking.handle_done();
    let began = now;
    for index in 66..66 + MAX_BROKEN {
        assert_eq!(taking.poll(now), read(1, index, 100 - index));
        break_off(&mut taking, now, index, 1);
        if let Step::Wait(Some(until)) = taking.poll(now) {
            now = until;
        }
    }
    assert_eq!(taking.poll(now), Step::Exhausted);
    assert_eq!(now - began, BROKEN_PAUSE * 3);
}

/// Lets a source bring chunks, each after `millis`; returns when it is left, with the next chunk.
fn bring(taking: &mut Taking, now: &mut Duration, first: u32, millis: u64) -> u32 {
    let mut index = first;
    while taking.reading().is_some() {
        *now += Duration::from_millis(millis);
        taking.handle_arrived(*now, index, Duration::from_millis(millis));
        taking.handle_chunk(index);
        index += 1;
    }
    index
}

#[test]
fn one_behind_which_it_falls_is_left_for_a_faster_one_and_comes_back() {
    let mut now = Duration::ZERO;
    let mut taking = taking(200, &[1, 2, 3]);
    taking.handle_told(now, 199);
    assert_eq!(taking.poll(now), read(1, 0, 64));
    let next = bring(&mut taking, &mut now, 0, 600);
    assert_eq!(taking.poll(now), read(2, next, 4), "it is tried");
    for index in next..next + 4 {
        now += Duration::from_millis(20);
        taking.handle_arrived(now, index, Duration::ZERO);
        taking.handle_chunk(index);
    }
    taking.handle_done();
    assert_eq!(taking.poll(now), read(2, next + 4, 64), "it is faster");
    for source in [3, 2, 3, 2, 3, 2, 3] {
        taking.handle_not_yet(now);
        now += SLOW_PAUSE;
        let count = if source == 2 { 64 } else { 4 };
        assert_eq!(taking.poll(now), read(source, next + 4, count));
    }
    taking.handle_not_yet(now);
    now += SLOW_PAUSE;
    assert_eq!(
        taking.poll(now),
        read(1, next + 4, 4),
        "others have nothing"
    );
}

#[test]
fn one_that_is_no_better_when_tried_is_not_read_from() {
    let mut now = Duration::ZERO;
    let mut taking = taking(200, &[1, 2, 3]);
    taking.handle_told(now, 199);
    taking.poll(now);
    let next = bring(&mut taking, &mut now, 0, 600);
    assert_eq!(taking.poll(now), read(2, next, 4));
    now += Duration::from_secs(1);
    taking.handle_arrived(now, next, Duration::ZERO);
    taking.handle_chunk(next);
    taking.handle_not_yet(now);
    assert_eq!(taking.poll(now), read(1, next + 1, 64));
    let next = bring(&mut taking, &mut now, next + 1, 600);
    assert_eq!(taking.poll(now), read(3, next, 4), "another one is tried");
    let deadline = now + Duration::from_millis(600 * 4 / 2);
    assert_eq!(taking.poll(now), Step::Wait(Some(deadline)));
    taking.poll(deadline);
    assert_eq!(taking.reading(), None, "it would be too late");
    assert_eq!(taking.poll(deadline), read(1, next, 64));
}

#[test]
fn what_readers_need_comes_first_and_the_rest_after() {
    let now = Duration::ZERO;
    let mut taking = taking(200, &[1]);
    assert_eq!(taking.poll(now), read(1, 0, 64));
    taking.handle_wanted(190);
    assert_eq!(taking.poll(now), Step::Wait(None), "one read at a time");
    taking.handle_done();
    assert_eq!(taking.poll(now), read(1, 190, 10));
    (190..200).for_each(|index| taking.handle_chunk(index));
    taking.handle_done();
    assert_eq!(taking.poll(now), read(1, 0, 64));
}

#[test]
fn runs_of_chunks_join_in_any_order() {
    let mut taking = Taking::new(6);
    for index in [4, 0, 2, 1, 5] {
        taking.handle_chunk(index);
    }
    assert_eq!(taking.missing_from(0), Some(3..4));
    taking.handle_chunk(3);
    assert!(taking.is_complete());
}
