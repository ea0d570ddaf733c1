package planted

// heldFaults are in what is held of the workloads for a rollback, and when.
func heldFaults() []fault {
	return []fault{
		{"images: an upgrade holds nothing", "upgrade/images.go", "err := r.Images.Keep(ctx, r.Booted); err != nil", "err := error(nil); err != nil", "upgrade TestImagesOfAnUpgrade", true},
		{"images: an upgrade goes on without them", "upgrade/images.go", "return fmt.Errorf(\"keeping the images of what runs now: %w\", err)", "r.Log.Warn(fmt.Sprint(err))", "upgrade TestImagesOfAnUpgrade", true},
		{"images: what the old system needed stays", "upgrade/images.go", "err := r.Images.Drop(ctx, r.result.Slot); err != nil", "err := error(nil); err != nil", "upgrade TestImagesOfAnUpgrade", true},
		{"images: a rollback holds nothing", "upgrade/images.go", "\tif proven {", "\tif false {", "upgrade TestImagesOfARollback", true},
		{"images: a rollback gives nothing back", "upgrade/images.go", "err := m.Images.Restore(ctx, b.Slot); err != nil", "err := error(nil); err != nil", "upgrade TestImagesOfARollback", true},
		{"images: a red gate gives nothing back", "upgrade/settle.go", "m.Hooks.back(ctx, m.Log, booted.Other())", "", "upgrade TestImagesOfAFallBack", true},
		{"images: a fall back of GRUB's gives nothing back", "upgrade/settle.go", "\t\tm.Hooks.back(ctx, m.Log, booted)\n\t\tif err != nil {", "\t\tif err != nil {", "upgrade TestImagesOfAFallBack", true},
		{"images: the last rung gives nothing back", "upgrade/settle.go", "\tm.Hooks.back(ctx, m.Log, booted)\n\treturn v, m.record", "\treturn v, m.record", "upgrade TestSettleTakesOver", true},
	}
}

// spaceFaults are in what is said of the space.
func spaceFaults() []fault {
	return []fault{
		{"space: containerd is waited for twice", "status/space.go", " || !answers", " || answers && false", "status TestSpace", true},
		{"space: containerd may take for ever", "status/space.go", "context.WithTimeout(ctx, askLimit)", "context.WithCancel(ctx)", "status TestSpace", true},
	}
}

// daemonFaults are those that only a test with real daemons notices.
func daemonFaults() []fault {
	return []fault{
		{"gate: systemd is as gone as a connection", "health/systemd.go", "err == nil || ctx.Err() != nil {", "err == nil || names == nil {", "health TestSharedConnectionThatEnded", true},
		{"gate: containerd is as gone as a connection", "workload/workload.go", "err == nil || ctx.Err() != nil {", "err == nil || r != nil {", "workload TestSharedConnectionThatEnded", true},
		{"gate: the connection ends under a probe", "workload/workload.go", "shared.users.Wait()", "_ = shared", "workload TestProbeExecHangs", true},
		{"gate: a command that ended has left nothing", "workload/exec.go", "for n := -1; n != 0; left += n {", "for n := -1; n != 0 && !r.exited; left += n {", "workload TestProbeExec", true},
		{"gate: a command's end is a change", "workload/workload.go", " || ofCommand(event)", "", "workload TestCommandsAreNoChange", true},
		{"gate: a command's start is a change", "workload/workload.go", "tasks/(create|start|oom|exit|delete|paused|resumed)$)", "tasks/)", "workload TestCommandsAreNoChange", true},
		{"images: nothing is held", "lease/lease.go", "leases.Resource{ID: digest, Type: \"content\"}", "leases.Resource{ID: digest, Type: \"ingests\"}", "lease TestPrunedImageComesBack TestMovedNameStays", true},
		{"images: leases expire", "lease/lease.go", "leases.WithLabels(l.Labels))", "leases.WithLabels(l.Labels), leases.WithExpiration(time.Hour))", "lease TestPrunedImageComesBack", true},
		{"images: one slot takes from the other", "lease/lease.go", "l.ID == keep || l.Labels[slotLabel] != string(slot)", "l.ID == keep", "lease TestMovedNameStays TestReplaced", true},
		{"images: what was held before stays", "lease/lease.go", "l.ID == keep || l.Labels[slotLabel] != string(slot)", "l.ID == keep || l.ID != \"\"", "lease TestReplaced TestCuts TestPrunedImageComesBack", true},
		{"images: a lease that is there is taken for filled", "lease/lease.go", "\t\tfor _, img := range images {\n\t\t\tif err := s.hold", "\t\tfor _, img := range images {\n\t\t\tif slices.ContainsFunc(s.leases, func(o leases.Lease) bool { return o.ID == keep }) {\n\t\t\t\tbreak\n\t\t\t}\n\t\t\tif err := s.hold", "lease TestCuts", true},
		{"images: what stands still is held", "lease/lease.go", " && (c.Status == health.Running || c.Restart != \"\")", "", "lease TestReplaced TestPrunedImageComesBack", true},
		{"images: osctl's own namespace", "lease/lease.go", "if name == k.Own {", "if false {", "lease TestSpaces", true},
		{"images: a lost name is forgotten", "lease/image.go", "img.name == name && s.there(img) == nil", "false", "lease TestReplaced", true},
		{"images: another slot's come back", "lease/image.go", "range s.held(slot) {\n\t\t\tall", "range s.held(\"\") {\n\t\t\tall", "lease TestPrunedImageComesBack", true},
		{"space: a blob counts twice", "workload/space.go", "if !seen[info.Digest] {", "if true {", "workload TestSpace", true},
		{"space: osctl's own content is the workloads'", "workload/space.go", "if name == r.own {", "if false {", "workload TestSpace", true},
		{"space: broken downloads are forgotten", "workload/space.go", "sum += p.Offset", "_ = p", "workload TestSpace", true},
		{"space: files of containers are read", "workload/space.go", "if info.Kind == snapshots.KindCommitted {", "if true {", "workload TestSpace", true},
		{"images: no name for what was moved away", "lease/image.go", "[]string{img.name, img.own()}", "[]string{img.name}", "lease TestMovedNameStays", true},
	}
}
