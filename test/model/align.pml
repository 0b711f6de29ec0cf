/*
 * The alignment protocol: R ranks, rounds of two all-gathers, equal step counts.
 *
 * A window is abstracted to a count: n samples form any 1 <= g <= n groups, so lengths, costs and
 * budgets are every possibility at once. What one rank does between two gathers touches only its
 * own variables and is one atomic step; headers of peers are read one by one.
 *
 * Parameters (-D):
 *   R ranks, D fresh samples per window, MAXN samples per source at most
 *   DEFER k    align: 'defer' with maxDeferRounds k (else 'split')
 *   RAGGED     windowTrigger: 'cost': a window may end after any fresh sample; without it all
 *              windows but the last hold D, groups never outnumber a peer's samples, and
 *              'defer' has nothing to defer
 *   CAP k      each rank allows any 1..k steps per round
 *   ABORT      at most one rank raises ABORT in a header
 *   FAIL       at most one rank dies while it collects, between gather A and B, or after B
 *   DRAIN      any rank may ask for an early end in any header
 *   NONJOIN    join: 'none' (else 'idle')
 *   QUOTA k    the run ends with the step that makes k samples; sources are reopened until then
 *   DOUBLE     an all-gather with two alternating buffers instead of a second barrier
 * Mutants, each of which breaks one rule and must be caught:
 *   MUTANT_LEAVE_EARLY    an exhausted rank without samples leaves while its peers go on
 *   MUTANT_FORGET_CARRY   the run ends when all sources are exhausted, whatever is carried
 *   MUTANT_ONE_BARRIER    nobody waits until its header was read
 *   MUTANT_LOCAL_QUOTA    each rank counts its own samples towards the quota
 *   MUTANT_LOCAL_ABORT    a rank that aborts does not say so
 *   MUTANT_LOCAL_TARGET   each rank takes its own number of groups for the number of steps
 *
 * Line of the model              -> function of src/
 *   collect, form                   the batcher's window (batch)
 *   publish A .. read A, decide     alignRound (dist/align)
 *   fit                             fitToSteps (batch)
 *   publish B .. emit               the driver of alignRound (dist/align)
 *   exchange                        ProcessGroup.allGather (dist)
 */
#ifndef R
#define R 2
#endif
#ifndef D
#define D 2
#endif
#ifndef MAXN
#define MAXN 4
#endif

#ifdef DOUBLE
#define SLOTS 2
#define SLOT (parity * R)
#else
#define SLOTS 1
#define SLOT 0
#endif

/* Per rank. */
byte N[R];        /* samples in the source */
byte src[R];      /* samples read so far */
byte emitted[R];  /* samples emitted, all passes */
byte dropped[R];  /* samples given up at the end of a pass, join 'none' */
byte steps[R];
byte rounds[R];

/* Number of the gather whose message lies in the buffer: A and B share one buffer. */
byte stamp[SLOTS * R];

/* Header of gather A. */
byte hSamples[SLOTS * R];
byte hGroups[SLOTS * R];
bool hExhausted[SLOTS * R];
byte hSteps[SLOTS * R];  /* not sent by the code: lets a reader check S3 */
#ifdef CAP
byte hCap[SLOTS * R];
#endif
#ifdef DEFER
byte hAge[SLOTS * R];
#endif
#ifdef ABORT
bool hAbort[SLOTS * R];
bool abortRaised = false;
#endif
#ifdef DRAIN
bool hDrain[SLOTS * R];
#endif

/* Metadata of gather B: samples per step, here their total and, for quotas, each step's. */
byte bEmitted[SLOTS * R];
#ifdef QUOTA
byte bStep[SLOTS * R * MAXN];
#endif

bool failed = false;  /* the group failed: a gather that is not complete never will be */
byte ended = 0;       /* ranks that stopped or aborted */
bool unequal = false; /* some rank did not stop normally */

/* The all-gather. */
#ifdef DOUBLE
byte posted[2];
#else
byte arrived = 0;
bool sense = false;
#endif

inline barrier() {
  mySense = !mySense;
  atomic { arrived++; if :: arrived == R -> arrived = 0; sense = mySense :: else fi };
  /* When the failure arrives together with the last header, either may win. */
  if :: sense == mySense :: failed -> goto aborted fi
}

/* Returns when all headers are there; the caller reads them and calls release(). */
inline exchange() {
#ifdef DOUBLE
  /* The last to post gather s proves that all have read gather s - 1: its counter may start anew. */
  atomic { posted[parity]++; if :: posted[parity] == R -> posted[1 - parity] = 0 :: else fi };
  if :: posted[parity] == R :: failed -> goto aborted fi
#else
  barrier()
#endif
}

inline release() {
#ifdef DOUBLE
  parity = 1 - parity
#else
#ifndef MUTANT_ONE_BARRIER
  barrier()
#else
  skip
#endif
#endif
}

inline mayFail() {
#ifdef FAIL
  if :: true :: atomic { !failed -> failed = true }; goto aborted fi
#else
  skip
#endif
}

proctype rank(byte r) {
  byte n, g, target, take, carry, i, k, seq;
  byte samplesOf[R];  /* what gather A said; later headers may replace the shared ones */
  bool allExhausted, closing;
#ifndef DOUBLE
  bool mySense;
#else
  bit parity;
#endif
#ifdef CAP
  byte cap;
#endif
#ifdef DEFER
  byte age, oldest, fewest;
  bool anyExhausted;
#endif
#ifdef ABORT
  bool abortSeen;
#endif
#ifdef NONJOIN
  bool passOver;
#endif
#ifdef QUOTA
  byte total, before, totalAtPassStart;
#endif

  do
  :: mayFail();
     atomic {
       /* collect: carry first, then fresh samples */
       n = carry; k = 0;
       do
       :: k < D && src[r] < N[r] && !closing -> src[r]++; n++; k++
#ifdef RAGGED
       :: k > 0 -> break
#endif
       :: else -> break
       od;
       /* form */
       g = 0;
       if :: n == 0 :: n > 0 -> g = 1; do :: g < n -> g++ :: break od fi;
       /* publish A */
       seq++;
       stamp[SLOT + r] = seq; hSamples[SLOT + r] = n; hGroups[SLOT + r] = g; hSteps[SLOT + r] = steps[r];
       hExhausted[SLOT + r] = (closing || src[r] == N[r]);
#ifdef CAP
       cap = 1; do :: cap < CAP -> cap++ :: break od;
       hCap[SLOT + r] = cap;
#endif
#ifdef DEFER
       hAge[SLOT + r] = age;
#endif
#ifdef ABORT
#ifdef MUTANT_LOCAL_ABORT
       if :: true :: !abortRaised -> abortRaised = true; goto aborted fi;
#else
       if :: hAbort[SLOT + r] = false :: !abortRaised -> abortRaised = true; hAbort[SLOT + r] = true fi;
#endif
#endif
#ifdef DRAIN
       if :: hDrain[SLOT + r] = false :: !closing -> hDrain[SLOT + r] = true fi;
#endif
     };
#ifdef MUTANT_LEAVE_EARLY
     if :: n == 0 && src[r] == N[r] -> goto stopped :: else fi;
#endif

     exchange();  /* gather A */
     atomic {
       target = 0; allExhausted = true; i = 0;
#ifdef CAP
       cap = 255;
#endif
#ifdef DEFER
       oldest = 0; fewest = 255; anyExhausted = false;
#endif
#ifdef ABORT
       abortSeen = false;
#endif
#ifdef NONJOIN
       passOver = false;
#endif
     };
     do
     :: atomic { i < R ->
          assert(stamp[SLOT + i] == seq);        /* S6: the header of this gather, not of a later one */
          assert(hSteps[SLOT + i] == steps[r]); /* S3 */
          samplesOf[i] = hSamples[SLOT + i];
          if :: hGroups[SLOT + i] > target -> target = hGroups[SLOT + i] :: else fi;
          if :: !hExhausted[SLOT + i] -> allExhausted = false :: else fi;
#ifdef CAP
          if :: hCap[SLOT + i] < cap -> cap = hCap[SLOT + i] :: else fi;
#endif
#ifdef DEFER
          if :: hExhausted[SLOT + i] -> anyExhausted = true :: else fi;
          if :: hSamples[SLOT + i] > 0 && hSamples[SLOT + i] < fewest -> fewest = hSamples[SLOT + i] :: else fi;
          if :: hAge[SLOT + i] > oldest -> oldest = hAge[SLOT + i] :: else fi;
#endif
#ifdef ABORT
          if :: hAbort[SLOT + i] -> abortSeen = true :: else fi;
#endif
#ifdef DRAIN
          if :: hDrain[SLOT + i] -> closing = true :: else fi;
#endif
#ifdef NONJOIN
          if :: hExhausted[SLOT + i] && hSamples[SLOT + i] == 0 -> passOver = true :: else fi;
#endif
          i++ }
     :: i == R -> break
     od;
     release();
#ifdef ABORT
     if :: abortSeen -> goto aborted :: else fi;
#endif
     mayFail();

     atomic {
       /* decide */
#ifdef DRAIN
       if :: closing -> allExhausted = true :: else fi;
#ifdef NONJOIN
       if :: closing -> passOver = false :: else fi;  /* a drained pass closes as a join pass does */
#endif
#endif
#ifdef CAP
       if :: cap < target -> target = cap :: else fi;
#endif
#ifdef DEFER
#ifdef DRAIN
       anyExhausted = (anyExhausted || closing);
#endif
       if :: !anyExhausted && oldest < DEFER && target > fewest -> target = fewest :: else fi;
#endif
#ifdef MUTANT_LOCAL_TARGET
       target = g;
#endif
#ifdef NONJOIN
       if :: passOver -> target = 0; dropped[r] = dropped[r] + n :: else -> assert(target > 0 || closing) fi;
#else
       assert(target > 0 || allExhausted);  /* S2 */
#endif
       rounds[r]++;
#if !defined(QUOTA)
       /* S5: windows needed plus the closing round; with carry, samples of the largest source plus one */
#if defined(DEFER) || defined(CAP) || defined(RAGGED)
       assert(rounds[r] <= MAXN + 1);
#else
       assert(rounds[r] <= (MAXN + D - 1) / D + 1);
#endif
#endif
     };
     if
     :: target == 0 -> atomic {
          carry = 0; n = 0; g = 0; i = 0; k = 0;
#ifdef NONJOIN
          allExhausted = true
#endif
        }
     :: else ->
        atomic {
          /* fit: with more groups than steps, `target` groups stay and their samples are emitted */
          if
          :: g <= target -> take = n
          :: else -> take = target; do :: take < n - (g - target) -> take++ :: break od
          fi;
          assert(n == 0 || take >= 1);  /* A5 */
          carry = n - take;
          assert((carry > 0) == (g > target));  /* so the code knows the end from gather A alone */
#ifdef DEFER
          if :: carry > 0 -> age++ :: else -> age = 0 fi;
#ifndef CAP
          assert(age <= DEFER);
#endif
#endif
          /* publish B */
          seq++;
          stamp[SLOT + r] = seq; bEmitted[SLOT + r] = take;
#ifdef QUOTA
          /* one sample in each of the first min(take, target) steps, the rest anywhere among them */
          i = 0; k = take;
          do
          :: i < target -> bStep[(SLOT + r) * MAXN + i] = (k > 0 -> 1 : 0); k = (k > 0 -> k - 1 : 0); i++
          :: else -> break
          od;
          i = 0;
          do
          :: k > 0 -> bStep[(SLOT + r) * MAXN + i] = bStep[(SLOT + r) * MAXN + i] + 1; k--
          :: k > 0 && i + 1 < target -> i++
          :: k == 0 -> break
          od;
#endif
          i = 0; k = 0
        };
        exchange();  /* gather B: its length depends on target, so all must agree on it */
        do
        :: atomic { i < R ->
             assert(stamp[SLOT + i] == seq);  /* S6 */
             i++ }
        :: i == R -> break
        od;
        atomic {
          /* emit */
#ifdef QUOTA
          i = 0;
          do
          :: i < target && total < QUOTA ->
             before = total; k = 0;
#ifdef MUTANT_LOCAL_QUOTA
             total = total + bStep[(SLOT + r) * MAXN + i];
#else
             do :: k < R -> total = total + bStep[(SLOT + k) * MAXN + i]; k++ :: else -> break od;
#endif
             emitted[r] = emitted[r] + bStep[(SLOT + r) * MAXN + i];
             steps[r]++; i++
          :: else -> break
          od;
#else
          emitted[r] = emitted[r] + take;
          steps[r] = steps[r] + target;
#endif
        };
        atomic {
          /* The carry of each rank: what it had in gather A less what gather B says it emits. */
          i = 0;
          do
          :: i < R ->
#ifndef MUTANT_FORGET_CARRY
             if :: samplesOf[i] > bEmitted[SLOT + i] -> allExhausted = false :: else fi;
#endif
             samplesOf[i] = 0; i++
          :: else -> break
          od;
          take = 0; g = 0; n = 0; k = 0; i = 0; target = 0
        };
        release();
        mayFail()
     fi;

#ifdef QUOTA
     if
     :: total >= QUOTA -> break
     :: total < QUOTA && allExhausted && !closing && total > totalAtPassStart ->
        atomic { src[r] = 0; carry = 0; totalAtPassStart = total }  /* next pass */
     :: total < QUOTA && allExhausted && (closing || total == totalAtPassStart) ->
        break  /* a pass that emits nothing ends the run: the next would emit nothing either */
     :: else
     fi
#else
     if :: allExhausted -> break :: else fi
#endif
  od;

stopped:
  atomic {
#ifdef QUOTA
    /* S8: the first step at the quota */
    assert(closing || total == totalAtPassStart || (total >= QUOTA && before < QUOTA));
#else
#ifdef NONJOIN
    assert(emitted[r] + dropped[r] == src[r]);
#else
    if
    :: closing -> assert(emitted[r] == src[r])  /* a drained run keeps what it has read */
    :: else -> assert(emitted[r] == N[r])       /* S4: identity coverage, as a count */
    fi;
#endif
#endif
    goto end
  };

aborted:
  atomic {
    /* S7: every rank gets here instead of hanging; a flagged abort even ends all at the same step */
    unequal = failed;
#if !defined(QUOTA)
    assert(emitted[r] + dropped[r] <= src[r])
#endif
  };

end:
  atomic {
    ended++;
    if
    :: ended == R && !unequal ->
       i = 1;
       do :: i < R -> assert(steps[i] == steps[0] && rounds[i] == rounds[0]); i++ :: else -> break od
    :: else
    fi
  }
}

init {
  byte r;
  atomic {
    do
    :: r < R ->
       do :: N[r] < MAXN -> N[r]++ :: break od;
       r++
    :: else -> break
    od;
    r = 0;
    do :: r < R -> run rank(r); r++ :: else -> break od
  }
}

/* L1: every rank stops or aborts. */
ltl everyRankEnds { <> (ended == R) }
