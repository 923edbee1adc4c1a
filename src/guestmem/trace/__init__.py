"""What KVM did to the pages of VMs over time, read out of kernel traces.

``text`` and ``tracedat`` read traces as events of ``event``; ``tables`` rebuilds the second-level page tables from
them, exactly where the trace has every change; ``summary`` adds up what a report says.
"""
