"""A short campaign; `make campaign` runs it for as long as wanted."""

from __future__ import annotations

import pytest

from nfs.campaign.history import waits
from nfs.campaign.nemesis import KINDS
from nfs.campaign.run import Campaign, document
from nfs.lab import Lab
from nfs.scene import Scene

pytestmark = pytest.mark.nfs

SECONDS = 25.0


@pytest.mark.timeout(240)
def test_random_faults_let_nobody_in_who_must_wait(lab: Lab, scene: Scene) -> None:
    """`scene` undoes what a campaign that failed has left."""
    campaign = Campaign(lab, "campaign", seed=1, processes=4, locks=4, lease_s=4.0)
    verdict = campaign.run(SECONDS)
    campaign.write_lock_anew()
    figures = document(campaign, verdict, SECONDS)
    print(figures)
    assert not verdict.violations
    assert not campaign.errors
    assert not campaign.leftovers()
    # Otherwise nothing was put to the test.
    assert verdict.count("read") > 10
    assert verdict.count("write") > 3
    assert campaign.faults


@pytest.mark.timeout(240)
def test_permits_are_never_too_many_and_never_lost_for_longer_than_a_lease(lab: Lab, scene: Scene) -> None:
    """Two clients, six processes each. The seed is one that kills a process, cuts off a client and stops one soon."""
    faults = {kind: KINDS[kind] for kind in ("kill", "pause", "network cut")}
    campaign = Campaign(lab, "permits", seed=115, processes=6, locks=1, lease_s=4.0, permits=3, faults=faults)
    verdict = campaign.run(SECONDS)
    figures = document(campaign, verdict, SECONDS)
    print(figures)
    assert not verdict.violations
    assert not campaign.errors
    assert not campaign.leftovers()
    assert waits(verdict.holds, campaign.faults).overtaken <= 3 * 18, "those who wait, tasks included"
    assert len(verdict.holds) > 100
    assert {fault.kind for fault in campaign.faults} == {*faults}
