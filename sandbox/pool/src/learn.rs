// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a function needs of its profile: observations, and names as a profile. The spawner counts, and knows the calls.

use std::{io::Read as _, sync::Arc};

use hearth_protocol::{
    TreeId,
    profile::{Observation, ObservationId, ProfileReading, Tier},
    spawner::{Event, Request},
};

use crate::{
    StoreError,
    link::{Link, LinkError},
    pool::Pool,
};

/// An observation that goes on. Dropping it ends it, and what was counted is forgotten.
#[derive(Debug)]
pub struct Observing {
    id: ObservationId,
    /// Until it is ended.
    link: Option<Arc<Link>>,
}

impl Observing {
    /// For [`hearth_protocol::profile::Profile::observed`].
    #[must_use]
    pub fn id(&self) -> ObservationId {
        self.id
    }

    /// What was counted.
    ///
    /// # Errors
    /// [`LinkError`]: the spawner is gone, and what it had counted with it.
    pub async fn end(mut self) -> Result<Observation, LinkError> {
        let link = self.link.take().ok_or(LinkError::Down)?;
        end(&link, self.id).await
    }
}

impl Drop for Observing {
    fn drop(&mut self) {
        let (Some(link), id) = (self.link.take(), self.id) else {
            return;
        };
        // Outside of a runtime the gateway is ending, and the spawner's count with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { drop(end(&link, id).await) });
        }
    }
}

async fn end(link: &Link, observation: ObservationId) -> Result<Observation, LinkError> {
    let request = |request| Request::EndObservation {
        request,
        observation,
    };
    match link.ask(request, None).await?.event {
        Event::Observed { observation, .. } => Ok(observation),
        _ => Err(LinkError::Confused),
    }
}

impl Pool {
    /// Begins to count the calls of sandboxes whose targets have the profile of this observation.
    ///
    /// # Errors
    /// [`LinkError`]; refused where too many go on already.
    pub async fn observe(&self) -> Result<Observing, LinkError> {
        let link = self.link().await?;
        let answer = link
            .ask(|request| Request::Observe { request }, None)
            .await?;
        let Event::Observing { observation, .. } = answer.event else {
            return Err(LinkError::Confused);
        };
        Ok(Observing {
            id: observation,
            link: Some(link),
        })
    }

    /// Makes a learned profile of names of system calls.
    ///
    /// # Errors
    /// [`LinkError`]; refused where there are more than [`hearth_protocol::profile::CALLS_MAX`].
    pub async fn read_profile(
        &self,
        of: Tier,
        calls: Vec<String>,
    ) -> Result<ProfileReading, LinkError> {
        let link = self.link().await?;
        let request = |request| Request::ReadProfile { request, of, calls };
        match link.ask(request, None).await?.event {
            Event::ProfileRead { reading, .. } => Ok(*reading),
            _ => Err(LinkError::Confused),
        }
    }

    /// The first `bytes_max` bytes of a file of a stored tree.
    ///
    /// # Errors
    /// [`StoreError`]; the tree has no such file, or it cannot be read.
    pub async fn read_stored(
        &self,
        tree: &TreeId,
        path: &str,
        bytes_max: u64,
    ) -> Result<Vec<u8>, StoreError> {
        let link = self.link().await?;
        let request = |request| Request::TreeOpen {
            request,
            tree: tree.clone(),
            path: path.to_owned(),
        };
        let answer = link.ask(request, None).await?;
        let (Event::TreeOpened { .. }, Some(file)) = (answer.event, answer.fds.into_iter().next())
        else {
            return Err(LinkError::Confused.into());
        };
        let mut content = Vec::new();
        let read = std::fs::File::from(file)
            .take(bytes_max)
            .read_to_end(&mut content);
        match read {
            Ok(_) => Ok(content),
            Err(source) => Err(StoreError::HandOver {
                path: path.to_owned(),
                source,
            }),
        }
    }
}
