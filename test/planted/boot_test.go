package planted

import "slices"

// bootFaults are in what keeps a machine from being bricked: the boot script, the boot
// state, the order in which a slot and small files are written, and what follows from
// a boot. docs/boot-states.md and docs/crash-states.md tell of more that was tried.
func bootFaults() []fault {
	return slices.Concat(scriptFaults(), rungFaults(), copyFaults(), stateFaults(), orderFaults(), etcFaults(), endFaults())
}

const bootScript = "../images/rootfs/usr/lib/osctl/boot/grub.cfg"

// scriptFaults are in how grub.cfg reads and saves the boot state.
func scriptFaults() []fault {
	return []fault{
		{"script: torn copies count", bootScript, "    [ \"$seq\" = \"$end\" ]\n    return $?\n", "    return 0\n", "boot TestGrubWhitelist", false},
		{"script: torn copies of the older format count", bootScript, "if [ \"$seq\" != \"$end\" ]; then", "if [ \"$seq\" = none ]; then", "boot TestGrubTornOldFormat", true},
		{"script: the lower number counts", bootScript, "if [ \"$seq\" -gt \"$best\" ]; then", "if [ \"$seq\" -lt \"$best\" ]; then", "boot TestGrubOrder", true},
		{"script: copy b of two equal ones", bootScript, "if [ \"$seq\" -gt \"$best\" ]; then", "if [ \"$seq\" -ge \"$best\" ]; then", "boot TestGrubOrder", true},
		{"script: any value counts", bootScript, "'^[1-9][0-9]{0,8} [013] [AB] [0-9] [0-3] [01] [1-9][0-9]{0,8}$'", "'^[^ ]+ [^ ]+ [^ ]+ [^ ]+ [^ ]+ [^ ]+ [^ ]+$'", "boot TestGrubWhitelist", true},
		{"script: values of the other copy count", bootScript, "    unset $name\n", "    true\n", "boot TestGrubMissingVariable", true},
		{"script: copy b is not read", bootScript, "  for copy in a b; do\n    if load_copy", "  for copy in a; do\n    if load_copy", "boot TestGrubOrder", true},
		{"script: copy a is not saved", bootScript, "  for copy in a b; do\n    save_env", "  for copy in b; do\n    save_env", "boot TestGrubDisk", true},
		{"script: copy b is not saved", bootScript, "  for copy in a b; do\n    save_env", "  for copy in a; do\n    save_env", "boot TestGrubDisk", true},
		{"script: what was saved is not read again", bootScript, "    [ \"$seq $ustate $rootfs $boot_counter $rung $other\" = \"$wanted\" ]\n    return $?\n", "    return 0\n", "boot TestGrubLostWrites", false},
		{"script: an older format has no tries", bootScript, "      set boot_counter=3\n    fi\n    return 0\n", "      set boot_counter=0\n    fi\n    return 0\n", "boot TestGrubOldFormats", true},
		{"script: the number 0 stays", bootScript, "    set seq=1\n", "    set seq=0\n", "boot TestGrubOldFormats", true},
		{"script: a boot takes no try", bootScript, "      set boot_counter=\"$less\"\n", "      true\n", "boot TestGrubNeverLoops", false},
		{"script: a counter at zero is one more try", bootScript, "      [ -n \"$less\" ]\n      return $?\n", "      return 0\n", "boot TestGrubCannotStart", true},
		{"script: a trial that cannot be saved is taken", bootScript, "    else\n      boot_from $proven unsaved unsaved\n      return 1\n", "    else\n      boot_slot $trial trial\n", "boot TestGrubLostWrites", true},
		{"script: a rung that cannot be saved is taken", bootScript, "  if ! save_state; then\n    boot_from $proven unsaved unsaved\n    return 1\n  fi\n", "  save_state\n", "boot TestGrubLostWrites", true},
		{"script: the disk is not taken from the prefix", bootScript, "  find_disk \"$prefix\"\n", "  true\n", "boot TestGrubDisk", true},
		{"script: a kernel without its initrd", bootScript, "    if initrd \"$device/boot/initrd.img\"; then\n      boot\n    fi\n", "    initrd \"$device/boot/initrd.img\"\n    boot\n", "boot TestGrubNoInitrd", true},
		{"script: nothing says why it restarts", bootScript, "can be started; restarting in 10 seconds\"", "\"", "boot TestGrubNothingToStart", true},
		{"script: a panic stays", bootScript, "set common=\"panic=10 ", "set common=\"", "boot TestGrubCommandLine", true},
		{"script: a shell in the initrd", bootScript, "rd.emergency=reboot rd.shell=0 ", "", "boot TestGrubCommandLine", true},
		{"script: a slot is repaired at its boot", bootScript, "ro fsck.mode=skip ", "ro ", "boot TestGrubCommandLine", true},
	}
}

// rungFaults are in where grub.cfg goes when something does not start.
func rungFaults() []fault {
	return []fault{
		{"ladder: a fall back is not recorded", bootScript, "  set ustate=3\n", "  set ustate=0\n", "boot TestGrubCannotStart", true},
		{"ladder: a fall back names the slot that failed", bootScript, "  set ustate=3\n  set rootfs=\"$proven\"\n", "  set ustate=3\n", "boot TestGrubCannotStart", false},
		{"ladder: a fall back has no tries", bootScript, "  set boot_counter=3\n  set rung=0\n  set other=0\n  climb_down", "  set rung=0\n  set other=0\n  climb_down", "boot TestGrubCannotStart", true},
		{"ladder: the slot that failed is a rung", bootScript, "  set rung=0\n  set other=0\n  climb_down", "  set rung=0\n  climb_down", "boot TestGrubCannotStart", true},
		{"ladder: a rung is for ever", bootScript, "  if ! take_try; then\n    next_rung\n    take_try\n  fi\n", "  if ! take_try; then\n    set boot_counter=2\n  fi\n", "boot TestGrubNeverLoops", true},
		{"ladder: pristine is left out", bootScript, "  if [ \"$rung\" = 0 ]; then\n    set rung=1\n", "  if [ \"$rung\" = 0 ]; then\n    set rung=3\n", "boot TestGrubNeverLoops", true},
		{"ladder: the other slot is left out", bootScript, "  elif [ \"$rung$other\" = 11 ]; then\n", "  elif [ \"$rung$other\" = 1 ]; then\n", "boot TestGrubNeverLoops", true},
		{"ladder: a slot that failed is gone down to", bootScript, "  elif [ \"$rung$other\" = 11 ]; then\n", "  elif [ \"$rung\" = 1 ]; then\n", "boot TestGrubNeverLoops", true},
		{"ladder: below rescue is rescue", bootScript, "  elif [ \"$rung\" = 3 ]; then\n    set rung=0\n", "  elif [ \"$rung\" = 3 ]; then\n    set rung=3\n", "boot TestGrubNeverLoops", false},
		{"ladder: a rung that is none", bootScript, "  if [ \"$rung$other\" = 20 ]; then\n    next_rung\n  fi\n", "", "boot TestGrubCannotStart", true},
		{"ladder: a fall back is called committed", bootScript, "    set kind=fallback\n", "    set kind=committed\n", "boot TestGrubNeverLoops", true},
		{"ladder: pristine is not said", bootScript, "    boot_from $proven pristine other\n", "    boot_from $proven $kind other\n", "boot TestGrubNeverLoops", true},
		{"ladder: rescue before a slot that is whole", bootScript, "    boot_slot $sibling $second_kind\n    boot_rescue\n", "    boot_rescue\n    boot_slot $sibling $second_kind\n", "boot TestGrubCannotStart", true},
		{"ladder: no last resort beside a missing rescue", bootScript, "    boot_rescue\n    boot_slot $sibling $second_kind\n  fi\n", "    boot_rescue\n  fi\n", "boot TestGrubCannotStart", true},
		{"ladder: no last resort on rung 2", bootScript, "    boot_rescue\n    boot_slot $proven $kind\n", "    boot_rescue\n", "boot TestGrubCannotStart", true},
		{"ladder: a missing rescue ends it", bootScript, "    boot_rescue\n    start_over\n", "    boot_rescue\n", "boot TestGrubCannotStart", true},
		{"ladder: starting over is not saved", bootScript, "  set rung=0\n  set boot_counter=2\n  if ! save_state; then\n", "  set rung=0\n  set boot_counter=2\n  if false; then\n", "boot TestGrubCannotStart", true},
		{"ladder: that it is not saved is not said", bootScript, "    set kind=unsaved\n", "    true\n", "boot TestGrubLostWrites", true},
		{"ladder: no turns without a state", bootScript, "  boot_from $slot unsaved unsaved\n", "  boot_from A unsaved unsaved\n", "boot TestGrubLostState", true},
		{"ladder: turns that are not saved", bootScript, "  save_env --file \"$esp/osctl/lost/grubenv\" lost\n", "", "boot TestGrubLostState", true},
		{"ladder: turns that were not saved are taken", bootScript, "  if [ \"lost $lost\" != \"lost $turn\" ]; then\n", "  if false; then\n", "boot TestGrubLostState", true},
		{"ladder: any number of turns", bootScript, "  if ! regexp '^lost [0-5]$' \"lost $lost\"; then\n", "  if false; then\n", "boot TestGrubLostState", true},
		{"ladder: no slot beside, without a state", bootScript, "  set other=1\n  boot_from $slot", "  set other=0\n  boot_from $slot", "boot TestGrubLostState", true},
		{"ladder: the copy inside is not run", "../images/grub-boot.cfg", "source \"(memdisk)/grub.cfg\"\n", "", "boot TestGrubWithoutScript", true},
	}
}

// copyFaults are in how osctl reads and writes the copies of the boot state.
func copyFaults() []fault {
	return []fault{
		{"copies: a change is not durable", "boot/copies.go", "os.O_RDWR|unix.O_DSYNC, 0)", "os.O_RDWR, 0)", "boot TestSystemCalls", true},
		{"copies: a copy is emptied first", "boot/copies.go", "os.O_RDWR|unix.O_DSYNC, 0)", "os.O_RDWR|os.O_TRUNC|unix.O_DSYNC, 0)", "boot TestSystemCalls", false},
		{"copies: the sync before reading back is off", "boot/copies.go", "	if err := f.Sync(); err != nil {\n		return nil, err\n	}\n	if err := unix.Fadvise", "	if err := unix.Fadvise", "boot TestSystemCalls", true},
		{"copies: what is read back comes from the cache", "boot/copies.go", "unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)", "unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_NORMAL)", "boot TestSystemCalls", true},
		{"copies: what is read back is not compared", "boot/copies.go", "	if !bytes.Equal(got, block) {\n", "	if got == nil {\n", "boot TestFaultyWrites", true},
		{"copies: both sectors are written", "boot/copies.go", "		changed = block[:grubenv.Sector]\n", "		changed = block[:]\n", "boot TestSystemCalls", true},
		{"copies: the better copy is written first", "boot/store.go", "	first := 1 - found.winner\n", "	first := found.winner\n", "boot TestWorseCopyIsWrittenFirst", true},
		{"copies: one that fails keeps the other from being written", "boot/store.go", "			failed = errors.Join(failed, fmt.Errorf(\"writing %s: %w\", s.paths[i], err))\n", "			return fmt.Errorf(\"writing %s: %w\", s.paths[i], err)\n", "boot TestFaultyWrites", true},
		{"copies: one file named twice", "boot/store.go", "paths[0] == paths[1] || errA == nil && errB == nil && os.SameFile(a, b)", "errA == nil && errB == nil && a == b && b == nil", "boot TestOpenRefuses", true},
		{"copies: torn ones count", "boot/format.go", "values[\"seq\"] != values[\"end\"]", "values[\"seq\"] == \"torn\"", "boot TestLoadProblems", false},
		{"copies: the lower number counts", "boot/store.go", "l.copies[i].record.seq > l.record().seq", "l.copies[i].record.seq < l.record().seq", "boot TestLoadProblems", true},
		{"copies: copy b of two equal ones", "boot/store.go", "l.copies[i].record.seq > l.record().seq", "l.copies[i].record.seq >= l.record().seq", "boot TestFirstCopyWinsATie", true},
		{"copies: numbers do not begin anew", "boot/format.go", "	if seq >= maxSeq {\n		return 1\n	}\n", "", "boot TestSequenceWraps", true},
		{"copies: unknown states count", "boot/format.go", "isState = `^[013]$`", "isState = `^[0-9]$`", "boot TestLoadProblems", true},
		{"copies: the counter of an older format counts", "boot/format.go", "		r.state.Tries = FullTries\n", "		r.state.Tries += 0\n", "boot TestOldFormats", true},
		{"copies: an older one is no problem", "boot/store.go", "		case c.record != l.record():\n", "		case false:\n", "boot TestLoadProblems", true},
		{"lock: everybody has it", "boot/lock.go", "unix.LOCK_EX|unix.LOCK_NB", "unix.LOCK_SH|unix.LOCK_NB", "boot TestLock", true},
	}
}

// stateFaults are in what may follow from a boot state.
func stateFaults() []fault {
	return []fault{
		{"state: nothing proves the slot that is armed", "boot/store.go", "	if !w.Valid() {\n		return fmt.Errorf(\"arming a trial: %w\", ErrNotWritten)\n	}\n", "", "boot TestRefusalsWriteNothing", false},
		{"state: a trial over a trial", "boot/state.go", "	case s.Phase == Trial:\n		return s.refuse(\"a trial is under way; it", "	case false:\n		return s.refuse(\"a trial is under way; it", "boot TestTransitions", true},
		{"state: a trial over a failure", "boot/state.go", "	case s.Phase == FellBack:\n		return s.refuse(\"the last failure has not been acknowledged\")\n	case target", "	case false:\n		return s.refuse(\"the last failure has not been acknowledged\")\n	case target", "boot TestTransitions", true},
		{"state: the running slot on trial", "boot/state.go", "	case target != s.Rootfs.Other():\n		return s.refuse(fmt.Sprintf(\"slot %q cannot", "	case target == \"\":\n		return s.refuse(fmt.Sprintf(\"slot %q cannot", "boot TestTransitions", true},
		{"state: the slot that failed is a rung", "boot/state.go", "Tries: FullTries, Given: s.Given}", "Tries: FullTries, Given: s.Given, Other: true}", "boot TestNext", true},
		{"state: the slot that is written is a rung", "boot/state.go", "	s.Other = false\n	return s, nil\n", "	return s, nil\n", "boot TestTransitions", true},
		{"state: coming up leaves the rung", "boot/state.go", "s.Rung, s.Tries, s.Given = RungSlot, FullTries, 0", "s.Tries, s.Given = FullTries, 0", "boot TestTransitions", true},
		{"state: tries are given back for ever", "boot/state.go", " && s.Given < MaxGiven {", " {", "boot TestImpatience", true},
		{"state: what GRUB did not count is given back", "boot/state.go", "booted.Kind != KindUnsaved && ", "", "boot TestGiveBack", true},
		{"ladder of osctl: a boot takes no try", "boot/ladder.go", "	s.Tries--\n	return s.place(), s\n", "	return s.place(), s\n", "boot TestNext", true},
		{"ladder of osctl: below rescue is rescue", "boot/ladder.go", "	case s.Rung == RungRescue:\n		return RungSlot\n", "", "boot TestNextGoesRound", true},
		{"state: rescue names what nobody proved", "boot/restored.go", "	if !w.Valid() || w.Slot().Other() == \"\" {\n", "	if w.Slot().Other() == \"\" && w.Valid() {\n", "boot TestRestoredAndRegainedRefuse", true},
	}
}

// orderFaults are in the order of writes to a slot and to small files.
func orderFaults() []fault {
	return []fault{
		{"slot: not made unbootable first", "slot/write.go", "	if err := m.invalidate(); err != nil {\n		return Written{}, err\n	}\n", "", "slot TestWriteOrder", false},
		{"slot: zeros are not durable before the rest", "slot/write.go", "	return m.medium.Sync()\n}\n", "	return nil\n}\n", "slot TestWriteOrder", true},
		{"slot: the first segment is not the last", "slot/write.go", "		w.first = bytes.Clone(data)\n", "		w.first = bytes.Clone(data)\n		if err := w.writeChanged(i, data); err != nil {\n			return err\n		}\n", "slot TestWriteOrder", true},
		{"slot: read back before it is durable", "slot/write.go", "	if err := m.medium.Sync(); err != nil {\n		return Written{}, fmt.Errorf(\"%w: syncing: %w\", ErrMedium, err)\n	}\n", "", "slot TestWriteOrder", true},
		{"slot: what is read back is not compared", "slot/write.go", "	if !f.same {\n", "	if false {\n", "slot TestWriteRefuses", false},
		{"slot: a segment that never arrived", "slot/write.go", "		if m.lacks[i] && !done {\n", "		if m.lacks[i] && done && !done {\n", "slot TestWriteRefuses", true},
		{"slot: an image that is too large", "slot/slot.go", "	if want.Size > medium.Size() {\n", "	if false {\n", "slot TestCompareRefusesAnImageLargerThanTheSlot", true},
		{"file: not durable before its name", "atomicfile/atomicfile.go", "	return f.Sync()\n}\n", "	return nil\n}\n", "atomicfile TestCuts", false},
		{"file: its name is not durable", "atomicfile/atomicfile.go", "	return SyncDir(dir)\n}\n", "	return nil\n}\n", "atomicfile TestCuts", true},
		{"file: it has not its mode", "atomicfile/atomicfile.go", "	if err := f.Chmod(mode); err != nil {\n		return err\n	}\n", "", "atomicfile TestCuts", true},
		{"disk: another one may have it", "disk/device.go", "			flags |= unix.O_EXCL\n", "			flags |= 0\n", "disk TestBlockDevice", true},
		{"disk: reads past the cache come from it", "disk/readback.go", "flags|unix.O_DIRECT, 0)", "flags, 0)", "disk TestReadBackAtAsksTheMedium", true},
		{"disk: pages are not dropped", "disk/readback.go", "off, int64(len(p)), unix.FADV_DONTNEED)", "off, int64(len(p)), unix.FADV_NORMAL)", "disk TestReadBackAtAsksTheMedium", true},
		{"disk: any of several partitions", "disk/partition.go", "	case len(all) == 1:\n", "	case len(all) >= 1:\n", "disk TestFindPartition", true},
		{"disk: the boot partition is not read back", "disk/esp.go", "	return content.compare(d)\n", "	return nil\n", "disk TestWritesThatDoNotReachTheMediumAreFound", true},
	}
}

// etcFaults are in the /etc of a slot.
func etcFaults() []fault {
	return []fault{
		{"etc: a clone is not durable before its name", "etc/clone.go", "	return syncFileSystem(path)\n}\n", "	return nil\n}\n", "etc TestCloneOrder", true},
		{"etc: a clone's name is not durable", "etc/clone.go", "	return atomicfile.SyncDir(dir)\n}\n", "	return atomicfile.SyncDir(\"/\")\n}\n", "etc TestCutsInReset", true},
		{"etc: the order to reset stays behind", "etc/clone.go", "c.copyEntry(filepath.Join(from, resetFile), filepath.Join(path, resetFile))", "c.copyEntry(filepath.Join(from, \"none\"), filepath.Join(path, resetFile))", "etc TestCloneCarriesTheOrder", true},
		{"etc: whiteouts are not durable before the mark goes", "etc/reset.go", "	if err := syncFileSystem(upper); err != nil {\n		return err\n	}\n	if err := unix.Lremovexattr", "	if err := unix.Lremovexattr", "etc TestCutsInReset", true},
		{"etc: an end that is not durable", "etc/reset.go", "	return atomicfile.SyncDir(filepath.Dir(path))\n}\n", "	return nil\n}\n", "etc TestCutsInReset", true},
		{"etc: a factory reset is not durable before its end", "etc/factory.go", "	return errors.Join(failed, syncFileSystem(f.data))\n", "	return failed\n", "etc TestCutsInReset", true},
		{"etc: the broken /etc on the pristine rung", "etc/preinit.go", "own := booted.Kind != PristineBoot", "own := booted.Kind != \"none\"", "etc TestDataPartitions", true},
		{"etc: data is mounted writable or not at all", "etc/preinit.go", "		fileSystem{\"ext4\", readOnly, \"\"}, fileSystem{\"ext4\", readOnly, \"noload\"}, fileSystem{\"btrfs\", readOnly, \"\"})", "		fileSystem{\"btrfs\", readOnly, \"\"})", "etc TestDataPartitions", true},
		{"etc: a journal that cannot be replayed", "etc/preinit.go", " fileSystem{\"ext4\", readOnly, \"noload\"},", "", "etc TestDataPartitions", true},
		{"etc: an overlay that came up read-only", "etc/preinit.go", "			err = wantWritable(lower)\n", "			_ = wantWritable\n", "etc TestReadOnlyOverlay", true},
	}
}

// endFaults are in what the end of a boot, and an upgrade, make of all that.
func endFaults() []fault {
	return []fault{
		{"settle: the system is not asked", "upgrade/settle.go", "if lacks := m.System(ctx); lacks != \"\" && ctx.Err() == nil {", "if lacks := \"\"; lacks != \"\" && ctx.Err() == nil {", "upgrade TestSettleGoesDownTheLadder", false},
		{"settle: down where GRUB does not count", "upgrade/settle.go", "	case m.Booted.Kind == boot.KindUnsaved:\n		m.Log.Error(", "	case false:\n		m.Log.Error(", "upgrade TestSettleStaysUp", true},
		{"settle: down for want of the data partition", "upgrade/settle.go", "	case m.Excuse != \"\":\n", "	case false:\n", "upgrade TestSettleStaysUp", true},
		{"settle: down to a rescue that is not there", "upgrade/settle.go", "	case last && !m.Rescue():\n", "	case last && m.Rescue == nil:\n", "upgrade TestSettleStaysUp", true},
		{"settle: nothing is given back", "upgrade/settle.go", "errors.Join(m.record(ctx, booted), mild(m.Log, m.Boot.Settle()))", "errors.Join(m.record(ctx, booted), mild(m.Log, m.Boot.Repair()))", "upgrade TestSettleGivesEverythingBack", true},
		{"settle: nothing is given back where a failure is not recorded", "upgrade/settle.go", "			err = errors.Join(err, mild(m.Log, m.Boot.Settle()))\n", "			err = errors.Join(err, mild(m.Log, nil))\n", "upgrade TestSettleFellBackWithoutALedger", true},
		{"settle: a trial that GRUB did not take goes on", "upgrade/settle.go", "	case state.Phase == boot.Trial && m.Booted.Kind == boot.KindUnsaved:\n		return m.refuseTrial(state)\n", "", "upgrade TestSettleWithATrialThatWasNotTaken", true},
		{"settle: a lost ledger keeps a bad slot", "upgrade/settle.go", "		m.Log.Error(\"the failure is not recorded\", \"slot\", s, \"reason\", reason, \"error\", err)\n", "		panic(err)\n", "upgrade TestSettleGoesBackWithoutALedger", true},
		{"rollback: to what was never committed", "upgrade/rollback.go", "if !state.Other || m.Booted != state.Rootfs {", "if m.Booted != state.Rootfs {", "upgrade TestRollBackRefuses", true},
		{"ledger: it is not rebuilt", "ledger/rebuild.go", "if e == nil || !e.tellsOf(held) {", "if e != nil && !e.tellsOf(held) {", "ledger TestRebuild", true},
		{"ledger: a corrupt one is lost", "ledger/ledger.go", "		err = os.Rename(s.path(), s.path()+\".corrupt\")\n", "		err = nil\n", "ledger TestCorruptLedgerIsKept", true},
		{"rescue: a slot that is whole is written", "rescue/watch.go", "		case found.Whole && i == 0:\n", "		case found.Whole && i == 7:\n", "rescue TestAttemptOnAWholeMachine", true},
		{"rescue: what is whole is new", "rescue/watch.go", "known.Whole && known.Digest == source.Digest().String()", "known.Whole && known.Digest == \"\"", "rescue TestAttemptOnAWholeMachine", true},
		{"rescue: a failed trial is not recorded", "rescue/restore.go", "			l.Fail(failed, \"it did not come up, nor did the slot before it\", time.Now().UTC())\n", "			_ = time.Now\n", "rescue TestAttemptRecordsTheFailedTrial", true},
	}
}
