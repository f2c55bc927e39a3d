"""Compare schedules over slow links: ranks in network namespaces of one machine."""
