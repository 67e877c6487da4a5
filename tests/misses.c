// SPDX-License-Identifier: GPL-2.0-only
/*
 * What tests/misses.py has to know of a kernel and only its compiler can tell,
 * in the way of the kernel's asm-offsets. Nobody runs this.
 */
#include <linux/kbuild.h>
#include <linux/mm.h>
#include <linux/mmzone.h>
#include "internal.h"
/* Since Linux 7.3 the allocator has a header of its own. */
#if __has_include("page_alloc.h")
#include "page_alloc.h"
#endif

#if defined(CONFIG_CMA) || defined(CONFIG_CPUSETS) || MAX_NUMNODES > 64
#error tests/misses.py knows nothing of CMA, cpusets and more than 64 nodes
#endif

void numbers(void);
void numbers(void)
{
	OFFSET(request_ac, direct_reclaim, ac);
	OFFSET(request_alloc_flags, direct_reclaim, alloc_flags);

	OFFSET(ac_nodemask, alloc_context, nodemask);
	OFFSET(ac_preferred_zoneref, alloc_context, preferred_zoneref);
	OFFSET(ac_migratetype, alloc_context, migratetype);
	OFFSET(ac_highest_zoneidx, alloc_context, highest_zoneidx);

	OFFSET(zoneref_zone, zoneref, zone);
	OFFSET(zoneref_idx, zoneref, zone_idx);
	DEFINE(zoneref_size, sizeof(struct zoneref));

	OFFSET(zone_watermark, zone, _watermark);
	OFFSET(zone_boost, zone, watermark_boost);
	OFFSET(zone_lowmem_reserve, zone, lowmem_reserve);
	DEFINE(zone_free, offsetof(struct zone, vm_stat[NR_FREE_PAGES]));
	OFFSET(zone_pcp, zone, per_cpu_pageset);
#ifdef __GFP_ATOMIC
	/* The older kernels: a block counts as reserved, even if none of it is free. */
	OFFSET(zone_highatomic, zone, nr_reserved_highatomic);
	/* Whom the boost is not for, those with __GFP_ATOMIC, do not reclaim. */
	DEFINE(ALLOC_BOOST_IGNORED, 0);
#else
	OFFSET(zone_highatomic, zone, nr_free_highatomic);
	DEFINE(ALLOC_BOOST_IGNORED, ALLOC_MIN_RESERVE);
#endif
#ifdef CONFIG_NUMA
	OFFSET(zone_node, zone, node);
#endif

	OFFSET(pcp_count, per_cpu_pages, count);
	OFFSET(pcp_lists, per_cpu_pages, lists);

	DEFINE(ALLOC_NO_WATERMARKS, ALLOC_NO_WATERMARKS);
	DEFINE(ALLOC_WMARK_MASK, ALLOC_WMARK_MASK);
	DEFINE(ALLOC_WMARK_MIN, ALLOC_WMARK_MIN);
	DEFINE(ALLOC_RESERVES, ALLOC_RESERVES);
	DEFINE(ALLOC_MIN_RESERVE, ALLOC_MIN_RESERVE);
	DEFINE(ALLOC_NON_BLOCK, ALLOC_NON_BLOCK);
	DEFINE(ALLOC_OOM, ALLOC_OOM);

	DEFINE(ATTEMPT_PCP, ATTEMPT_PCP);
	DEFINE(ATTEMPT_WATERMARK, ATTEMPT_WATERMARK);
	DEFINE(ATTEMPT_EMPTY, ATTEMPT_EMPTY);
}
