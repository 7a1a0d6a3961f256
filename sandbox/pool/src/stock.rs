// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Skeletons made ahead of need, by key.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use hearth_protocol::spawner::SkeletonSpec;

use crate::sandbox::Sandbox;

/// Skeletons made ahead of need.
#[derive(Debug, Default)]
pub(crate) struct Stock {
    shelves: Mutex<Shelves>,
}

#[derive(Debug, Default)]
struct Shelves {
    by_spec: HashMap<SkeletonSpec, Shelf>,
    /// Nothing is made or kept any more.
    closed: bool,
}

#[derive(Debug, Default)]
struct Shelf {
    ready: Vec<Sandbox>,
    making: u32,
}

impl Stock {
    /// Begins to keep skeletons of this key. True where it is new.
    pub(crate) fn want(&self, spec: &SkeletonSpec) -> bool {
        let mut shelves = self.shelves();
        let known = shelves.by_spec.contains_key(spec);
        if !known {
            shelves.by_spec.insert(spec.clone(), Shelf::default());
        }
        !known
    }

    /// Takes a living one.
    pub(crate) fn take(&self, spec: &SkeletonSpec) -> Option<Sandbox> {
        let mut shelves = self.shelves();
        let shelf = shelves.by_spec.get_mut(spec)?;
        while let Some(sandbox) = shelf.ready.pop() {
            if !sandbox.death.is_seen() {
                return Some(sandbox);
            }
        }
        None
    }

    /// The key that lacks the most, if any lacks one of `wanted`; it is then being made.
    pub(crate) fn begin_making(&self, wanted: u32) -> Option<SkeletonSpec> {
        let mut shelves = self.shelves();
        if shelves.closed {
            return None;
        }
        let (spec, shelf) = shelves
            .by_spec
            .iter_mut()
            .map(|(spec, shelf)| {
                shelf.ready.retain(|sandbox| !sandbox.death.is_seen());
                (spec, shelf)
            })
            .min_by_key(|(_, shelf)| shelf.ready.len() + shelf.making as usize)?;
        if shelf.ready.len() + shelf.making as usize >= wanted as usize {
            return None;
        }
        shelf.making += 1;
        Some(spec.clone())
    }

    /// Ends what [`Self::begin_making`] began.
    pub(crate) fn end_making(&self, spec: &SkeletonSpec, made: Option<Sandbox>) {
        let mut shelves = self.shelves();
        let closed = shelves.closed;
        if let Some(shelf) = shelves.by_spec.get_mut(spec) {
            shelf.making -= 1;
            if !closed {
                shelf.ready.extend(made);
            }
        }
    }

    /// Gives up one skeleton, of the fullest shelf, to make room.
    pub(crate) fn shed(&self) -> Option<Sandbox> {
        self.shelves()
            .by_spec
            .values_mut()
            .max_by_key(|shelf| shelf.ready.len())?
            .ready
            .pop()
    }

    /// Drops every skeleton, and those that are being made as soon as they are.
    pub(crate) fn close(&self) {
        self.shelves().closed = true;
        self.clear();
    }

    /// Drops every skeleton.
    pub(crate) fn clear(&self) {
        let taken: Vec<Sandbox> = self
            .shelves()
            .by_spec
            .values_mut()
            .flat_map(|shelf| shelf.ready.drain(..))
            .collect();
        drop(taken);
    }

    /// Skeletons ready and being made, by key.
    pub(crate) fn counts(&self) -> Vec<(SkeletonSpec, usize, u32)> {
        self.shelves()
            .by_spec
            .iter()
            .map(|(spec, shelf)| (spec.clone(), shelf.ready.len(), shelf.making))
            .collect()
    }

    fn shelves(&self) -> MutexGuard<'_, Shelves> {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
