// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Skeletons made ahead of need, by key.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use hearth_protocol::spawner::{SandboxLimits, SkeletonSpec};

use crate::sandbox::{Order, Skeleton};

/// So few skeletons of a kind, ready or being made, are scarce.
const SCARCE_MAX: usize = 1;

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

#[derive(Debug)]
struct Shelf {
    ready: Vec<Skeleton>,
    making: u32,
    /// What the next one is made with: the limits that were wanted last, as deploys often come in rows of the like.
    limits: SandboxLimits,
}

impl Stock {
    /// Begins to keep skeletons of this key. True where it is new.
    pub(crate) fn want(&self, order: Order) -> bool {
        let Order { spec, limits } = order;
        let mut shelves = self.shelves();
        if let Some(shelf) = shelves.by_spec.get_mut(&spec) {
            shelf.limits = limits;
            return false;
        }
        let shelf = Shelf {
            ready: Vec::new(),
            making: 0,
            limits,
        };
        shelves.by_spec.insert(spec, shelf);
        true
    }

    /// Takes a living one.
    pub(crate) fn take(&self, spec: &SkeletonSpec) -> Option<Skeleton> {
        let mut shelves = self.shelves();
        let shelf = shelves.by_spec.get_mut(spec)?;
        while let Some(skeleton) = shelf.ready.pop() {
            if !skeleton.death.is_seen() {
                return Some(skeleton);
            }
        }
        None
    }

    /// Whether the next call or two for some kind would find none ready.
    pub(crate) fn is_scarce(&self) -> bool {
        self.shelves()
            .by_spec
            .values()
            .any(|shelf| shelf.ready.len() + shelf.making as usize <= SCARCE_MAX)
    }

    /// The key that lacks the most, if any lacks one of `wanted`; it is then being made.
    pub(crate) fn begin_making(&self, wanted: u32) -> Option<Order> {
        let mut shelves = self.shelves();
        if shelves.closed {
            return None;
        }
        let (spec, shelf) = shelves
            .by_spec
            .iter_mut()
            .map(|(spec, shelf)| {
                shelf.ready.retain(|skeleton| !skeleton.death.is_seen());
                (spec, shelf)
            })
            .min_by_key(|(_, shelf)| shelf.ready.len() + shelf.making as usize)?;
        if shelf.ready.len() + shelf.making as usize >= wanted as usize {
            return None;
        }
        shelf.making += 1;
        Some(Order {
            spec: spec.clone(),
            limits: shelf.limits,
        })
    }

    /// Ends what [`Self::begin_making`] began.
    pub(crate) fn end_making(&self, spec: &SkeletonSpec, made: Option<Skeleton>) {
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
    pub(crate) fn shed(&self) -> Option<Skeleton> {
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
        let taken: Vec<Skeleton> = self
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
