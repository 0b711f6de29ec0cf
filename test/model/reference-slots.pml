/*
 * The slot protocol of the public reference, kept to show what it loses: it fails coverage (S4).
 *
 * Each index read gives one output slot; a round consumes all slots of the window, filled or not; a
 * rank without slots is finished, even when it still carries samples. All ranks take the number of
 * steps min(most groups, fewest slots, fewest samples), at least 1.
 * Smallest loss: two ranks, D = 2, sources of 1 and 2 samples: rank 1 emits one of its two.
 */
#ifndef R
#define R 2
#endif
#ifndef D
#define D 2
#endif
#ifndef MAXN
#define MAXN 2
#endif
byte N[R];
byte src[R];
byte emitted[R];
byte hSlots[R];
byte hSamples[R];
byte hGroups[R];
byte arrived = 0;
bool sense = false;

inline barrier() {
  mySense = !mySense;
  atomic { arrived++; if :: arrived == R -> arrived = 0; sense = mySense :: else fi };
  sense == mySense
}

proctype rank(byte r) {
  byte n, slots, g, target, most, fewestSlots, fewestSamples, take, i;
  bool mySense, allFinished;
  do
  :: atomic {
       slots = 0;
       do :: slots < D && src[r] < N[r] -> src[r]++; slots++; n++ :: else -> break od;
       g = 0;
       if :: slots == 0 :: slots > 0 -> g = 1; do :: g < n -> g++ :: break od fi;
       hSlots[r] = slots; hSamples[r] = (slots > 0 -> n : 0); hGroups[r] = g
     };
     barrier();
     atomic {
       allFinished = true; most = 0; fewestSlots = 255; fewestSamples = 255; i = 0;
       do
       :: i < R ->
          if :: hGroups[i] > most -> most = hGroups[i] :: else fi;
          if :: hGroups[i] > 0 -> allFinished = false :: else fi;
          if :: hSlots[i] > 0 && hSlots[i] < fewestSlots -> fewestSlots = hSlots[i] :: else fi;
          if :: hSamples[i] > 0 && hSamples[i] < fewestSamples -> fewestSamples = hSamples[i] :: else fi;
          i++
       :: else -> break
       od;
       target = most;
       if :: fewestSlots < target -> target = fewestSlots :: else fi;
       if :: fewestSamples < target -> target = fewestSamples :: else fi;
       if :: slots == 0 -> take = 0
          :: slots > 0 && g <= target -> take = n
          :: slots > 0 && g > target -> take = target; do :: take < n - (g - target) -> take++ :: break od
       fi;
       emitted[r] = emitted[r] + take; n = n - take
     };
     barrier();
     if :: allFinished -> break :: else fi
  od;
  assert(emitted[r] == N[r])  /* S4 */
}

init {
  byte r;
  atomic {
    do :: r < R -> do :: N[r] < MAXN -> N[r]++ :: break od; r++ :: else -> break od;
    r = 0;
    do :: r < R -> run rank(r); r++ :: else -> break od
  }
}
